"""DC-Solver: its compensation, its regression, and what it refuses; the recordings are in test_golden."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import solvers
from solvers.dc_solver import (
    Options,
    compensated,
    dc_solver,
    determined,
    polynomial_ratios,
    recall,
    regression,
)
from solvers.gradient import run
from solvers.grid import explicit, make_grid
from solvers.learned import Cost, Learned, LearnedError
from solvers.plan import Combine
from solvers.schedule import EDM, RectifiedFlow, Schedule, VPDiscrete, VPLinear
from solvers.testing import STEPS, check_budgets, check_plan, check_point, graded, mixture, solution, start
from solvers.testing import run as sampled
from solvers.tracer import Symbol, Tracer
from solvers.unipc import unipc
from tests.golden import HERE
from tests.golden.dc_solver import learned

SCHEDULES: list[Schedule] = [VPLinear(), VPDiscrete.linear(), EDM(), RectifiedFlow()]
VARIANTS = [
    Options(),
    Options(order=2, variant="bh1"),
    Options(order=4, variant="vary", dc_order=3),
    Options(order=1, dc_order=1, axis="lambda"),
    Options(predicts="noise", lower_order_final="never"),
]
CPR = json.loads((HERE / "dc_cpr.json").read_text())
PUBLISHED = np.array(CPR["coeffs"]).reshape(4, 3, 3)[:, ::-1, ::-1]  # recorded by falling powers of guidance and NFE


def some_ratios(steps: int, dc_order: int = 2, seed: int = 0) -> list[float]:
    free = np.random.default_rng(seed).uniform(0.6, 1.4, max(0, steps - dc_order))
    return [1.0] * min(dc_order, steps) + free.tolist()


def tuned(schedule: Schedule, nfe: int, **options: Any) -> Learned:
    own = Options(**options)
    one = learned(schedule, list(make_grid("logsnr", schedule, nfe).times), some_ratios(nfe, own.dc_order), own)
    return replace(one, values=one.values | {"grid": "logsnr"})


def write(folder: Path, *found: Learned) -> str:
    for one in found:
        for name, data in one.to_files().items():
            (folder / name).write_bytes(data)
    return str(folder)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_ratios_of_one_are_unipc(schedule: Schedule, options: Options) -> None:
    for steps in (1, 2, 3, 5, 12):
        grid = make_grid(dc_solver.default_grid(schedule), schedule, steps, t_start=0.9 * schedule.t_max)
        ones = learned(schedule, list(grid.times), [1.0] * steps, options)
        same = {k: v for k, v in asdict(options).items() if k in unipc.defaults}
        plan = dc_solver.on(grid, asdict(options), ones)
        assert plan.instructions == unipc.on(grid, same).instructions


def test_a_late_corrector_is_unipc_with_none() -> None:
    grid = make_grid("logsnr", VPLinear(), 6)
    options = Options(corrector_from=6)
    ones = learned(grid.schedule, list(grid.times), [1.0] * 6, options)
    assert dc_solver.on(grid, asdict(options), ones).instructions == unipc.on(grid, {"corrector": False}).instructions


@pytest.mark.parametrize("axis", ["time", "lambda"])
@pytest.mark.parametrize("dc_order", [1, 2, 3])
def test_the_compensated_output_is_on_the_polynomial_through_the_last(dc_order: int, axis: str) -> None:
    grid, i, ratio = make_grid("quadratic", VPLinear(), 6), 4, 1.37
    p = Tracer(grid)
    m = [Symbol({100 + j: 1.0}) for j in range(5)]
    compensated(p, grid, i, ratio, m, Options(dc_order=dc_order, axis=axis))
    (written,) = p.instructions
    assert isinstance(written, Combine)
    assert [r for _, r in written.terms] == [100 + j for j in range(dc_order + 1)]
    t = np.array(grid.times if axis == "time" else grid.lam)
    between = ratio * t[i] + (1 - ratio) * t[i - 1]
    for k in range(dc_order + 1):
        found = sum(c * t[i - r + 100] ** k for c, r in written.terms)
        assert found == pytest.approx(between**k, rel=1e-12)


@pytest.mark.parametrize("ratio", [0.8, 1.2])
def test_a_constant_ratio_is_of_first_order_as_declared(ratio: float) -> None:
    schedule, options = VPLinear(), Options(lower_order_final="never")
    errors = []
    for steps in STEPS:
        times = graded(schedule, "logsnr", steps, 1e-2)
        constant = learned(schedule, times, [1.0, 1.0] + [ratio] * (len(times) - 3), options)
        x = sampled(
            dc_solver.on(explicit(schedule, times), asdict(options), constant), mixture(schedule), start(schedule, 4)
        )
        errors.append(np.sqrt(np.mean((x.numpy() - solution(schedule, 1e-2, 3)) ** 2)))
    slope = -np.polyfit(np.log(STEPS), np.log(errors), 1)[0]
    assert slope == pytest.approx(dc_solver.order, abs=0.2)


@pytest.mark.parametrize("schedule", [VPLinear(), EDM()], ids=lambda s: type(s).__name__)
def test_conforms_with_any_ratios(schedule: Schedule, tmp_path: Path) -> None:
    for options in (Options(), Options(order=1, dc_order=3, axis="lambda", corrector_from=1)):
        own = asdict(options)
        one = own | {"tuned": write(tmp_path, *(tuned(schedule, n, **own) for n in range(1, 51)))}
        check_budgets("dc_solver", one, schedule)
        for nfe in (1, 2, 3, 4, 5, 9, 12):
            plan = solvers.plan("dc_solver", schedule, nfe, grid="logsnr", **one)
            assert isinstance(plan, solvers.Plan)
            check_plan(plan, buffers=options.history + 3)  # x, before and after correction, and the compensated output


def test_a_single_point_is_exact(tmp_path: Path) -> None:
    schedule = EDM()
    for steps in (1, 2, 5, 11):
        times = np.linspace(0.9 * schedule.t_max, 0.1 * schedule.t_max, steps + 1).tolist()
        write(tmp_path, learned(schedule, times, some_ratios(steps), Options()))
    check_point("dc_solver", {"tuned": str(tmp_path)}, schedule)


def test_ratios_may_be_tensors_to_be_differentiated() -> None:
    grid, options = make_grid("logsnr", VPLinear(), 6), Options()
    x_T, denoiser, ratios = start(grid.schedule, 3), mixture(grid.schedule), some_ratios(6)

    def end(values: list[Any]) -> torch.Tensor:
        p = Tracer(grid, learned=learned(grid.schedule, list(grid.times), values, options).values)
        dc_solver.trace(p, grid, **asdict(options))
        return run(p.instructions, denoiser, "data", x_T)[p.instructions[-1].out].square().sum()

    free = torch.tensor(ratios[2:], dtype=torch.float64, requires_grad=True)
    value = end([1.0, 1.0, *free])
    plan = dc_solver.on(grid, {}, learned(grid.schedule, list(grid.times), ratios, options))
    assert value.item() == pytest.approx(float(sampled(plan, denoiser, x_T).square().sum()), rel=1e-12)
    (gradient,) = torch.autograd.grad(value, free)
    for k in range(4):
        up, down = ([*ratios[: 2 + k], ratios[2 + k] + e, *ratios[3 + k :]] for e in (1e-5, -1e-5))
        assert float(gradient[k]) == pytest.approx(float(end(up) - end(down)) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("name", CPR["ratios"])
def test_the_published_regression_gives_the_published_ratios(name: str) -> None:
    guidance, nfe = name.removeprefix("CFG").split("_NFE")
    found = polynomial_ratios(PUBLISHED, int(nfe), float(guidance))
    np.testing.assert_allclose(found, CPR["ratios"][name], rtol=0, atol=1e-9)


def on_polynomial(nfe: int, guidance: float, coefficients: Any = PUBLISHED) -> Learned:
    ratios = polynomial_ratios(coefficients, nfe, guidance)
    one = tuned(VPLinear(), nfe)
    return replace(one, guidance=guidance, cost=Cost(nfe, 1, 2), values=one.values | {"ratios": ratios})


def test_the_regression_finds_the_polynomial_that_its_data_lie_on() -> None:
    found = [on_polynomial(nfe, g) for nfe in (5, 6, 8, 10, 20) for g in (1.0, 4.0, 7.5)]
    fit = determined(found, 2)
    assert fit is not None
    assert fit[1] == (3, 2, 2)
    for nfe, g in ((7, 1.0), (15, 6.0), (19, 2.5)):
        one = recall(found, nfe, g)
        assert one is not None
        np.testing.assert_allclose(one.values["ratios"], polynomial_ratios(PUBLISHED, nfe, g), atol=1e-6)


@pytest.mark.parametrize(
    ("held", "degree"),
    [
        ([(5, 1.0)], (2, 0, 0)),
        ([(5, 1.0), (6, 1.0)], (3, 0, 0)),
        ([(5, 1.0), (6, 1.0), (10, 1.0)], (3, 0, 1)),
        ([(6, 1.0), (8, 1.0), (10, 1.0), (20, 1.0)], (3, 0, 2)),
        ([(6, 1.0), (8, 1.0), (6, 4.0), (8, 4.0)], (3, 1, 1)),
        ([(6, 1.0), (8, 1.0), (6, 4.0)], (3, 1, 0)),
        ([(6, 1.0), (8, 1.0), (5, 4.0)], (3, 0, 1)),
        ([(8, g) for g in (1.0, 2.0, 4.0, 8.0)], (3, 2, 0)),
    ],
)
def test_the_regression_is_of_no_higher_degree_than_determined(
    held: list[tuple[int, float]], degree: tuple[int, int, int]
) -> None:
    fit = determined([on_polynomial(*one) for one in held], 2)
    assert fit is not None
    used, found = fit
    assert found == degree
    assert len({one.guidance for one in used}) > degree[1]
    assert len(used) == len(held) - ((5, 4.0) in held)  # a scale without a curve says nothing of its own
    low = np.random.default_rng(0).normal(size=[d + 1 for d in degree])
    again = regression([on_polynomial(one.nfe or 0, one.guidance, low) for one in used], degree, 2)
    np.testing.assert_allclose(again, low, atol=1e-6)  # one polynomial of these degrees alone fits


def test_a_budget_between_is_regressed_and_says_so(tmp_path: Path) -> None:
    folder = write(tmp_path, *(on_polynomial(nfe, 1.0) for nfe in (5, 6, 10)))
    plans = [solvers.plan("dc_solver", VPLinear(), nfe, tuned=folder) for nfe in (8, 5, 6, 10)]
    assert [p.nfe for p in plans] == [8, 5, 6, 10]
    assert len({dict(p.options)["tuned"] for p in plans}) == 4
    plan, exact = plans[0], plans[2]
    assert isinstance(plan, solvers.Plan)
    assert plan.learned_from is not None
    assert plan.learned_from.calls == sum(nfe + 1 + 4 for nfe in (5, 6, 10))
    assert plan.learned_from.objective.endswith("by regression over 5, 6, 10 calls at guidance 1")
    assert exact.learned_from is not None
    assert exact.learned_from.calls == 11
    assert solvers.Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(("nfe", "guidance"), [(4, 1.0), (11, 1.0), (8, 0.5), (8, 4.0)])
def test_nothing_is_extrapolated(nfe: int, guidance: float, tmp_path: Path) -> None:
    folder = write(tmp_path, *(on_polynomial(n, 1.0) for n in (5, 10)))
    with pytest.raises(solvers.BudgetError, match=f"holds 5, 10 calls at guidance 1, not {nfe} at guidance"):
        solvers.plan("dc_solver", VPLinear(), nfe, tuned=folder, guidance=guidance)


def test_files_of_different_solvers_or_networks_are_not_mixed() -> None:
    schedule = VPLinear()
    one, two = tuned(schedule, 6), tuned(schedule, 10)
    assert recall([one, two], 8, 1.0) is not None
    assert recall([one, tuned(schedule, 10, order=2)], 8, 1.0) is None
    assert recall([one, replace(two, digest="1" * 64)], 8, 1.0) is None
    assert recall([one, replace(two, values=two.values | {"grid": "uniform"})], 8, 1.0) is None


def test_a_single_ratio_is_no_curve() -> None:
    assert recall([tuned(VPLinear(), n) for n in (2, 3)], 2, 1.0) is not None  # as tuned
    assert recall([tuned(VPLinear(), n) for n in (1, 3)], 2, 1.0) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"grid": "uniform"}, "tuned on the logsnr grid of 6 steps from t = 1 to 0.001, not on 1, 0.83"),
        ({"t_end": 1e-4}, "tuned on the logsnr grid of 6 steps"),
        ({"afs": True}, "tuned on the logsnr grid of 6 steps"),
        ({"order": 2}, "tuned with order=3, not with order=2"),
        ({"axis": "lambda"}, "tuned with axis='time', not with axis='lambda'"),
        ({"axis": "sigma"}, "axis='sigma' is none of time, lambda"),
        ({"dc_order": 4}, "dc_order=4 must lie between 1 and 3"),
        ({"corrector_from": -1}, "corrector_from=-1 must be a step"),
        ({"order": 5}, "dc_solver: order=5 must lie between 1 and 4"),
        ({"variant": "bh3"}, "dc_solver: variant='bh3' is none of bh1, bh2, vary"),
    ],
)
def test_what_was_not_tuned_is_refused(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = write(tmp_path, tuned(VPLinear(), 6))
    with pytest.raises(ValueError, match=message):
        solvers.plan("dc_solver", VPLinear(), 6, tuned=folder, **given)


@pytest.mark.parametrize("ratios", [[1.0, 1.1, 1.0, 1.0], [1.0, 1.0, 1.0]])
def test_ratios_that_cannot_act_are_refused(ratios: list[float]) -> None:
    grid = make_grid("logsnr", VPLinear(), 4)
    with pytest.raises(ValueError, match="needs 4 ratios, the first 2 of them 1"):
        dc_solver.on(grid, {}, learned(grid.schedule, list(grid.times), ratios, Options()))


def test_lambda_is_refused_where_it_is_infinite() -> None:
    grid, options = make_grid("shifted", RectifiedFlow(), 4), Options(axis="lambda")
    with pytest.raises(ValueError, match="no signal: use axis=time"):
        dc_solver.on(grid, asdict(options), learned(grid.schedule, list(grid.times), some_ratios(4), options))


def test_without_a_folder_it_says_what_to_do() -> None:
    with pytest.raises(LearnedError, match="run `fewstep tune dc_solver` and give tuned=FOLDER"):
        solvers.plan("dc_solver", VPLinear(), 6)
