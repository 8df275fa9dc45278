"""The search for DC-Solver's ratios: the official one's numbers, its cost, and that it can be interrupted."""

import copy
import re
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import solvers
from solvers.dc_solver import Options, dc_solver
from solvers.grid import make_grid
from solvers.learned import Cost, Learned
from solvers.model import Cond, Denoiser
from solvers.plan import Option
from solvers.schedule import EDM, RectifiedFlow, VPDiscrete, VPLinear
from solvers.testing import mixture, start
from solvers.tune import Finding, NoNotes, Notes, Problem
from solvers.tune.compensation import base, exact
from solvers.tune.compensation import dc_solver as tuner
from tests.golden import Case, cases, velocity

SEARCHED = [c for c in cases() if re.match("dc-(bh2.*-searched.*-(n5|n5-cfg4|n10-cfg4)|bh1.*-searched.*-n8)$", c.id)]


def tune(problem: Problem, nfe: int, notes: Notes | None = None, **settings: Option) -> Finding:
    return tuner.tune(problem, nfe, notes or NoNotes(), {"iterations": 5, **settings})


def problem(denoiser: Denoiser | None = None, metric: Any = None) -> Problem:
    """Three Gaussians in twelve dimensions."""
    denoiser = denoiser or mixture(VPLinear())

    def begin(first: int, count: int, t: float) -> tuple[Tensor, Cond]:
        return start(denoiser.schedule, first + count)[first:], {}

    return Problem(denoiser, 1.0, (12,), 0, begin, metric)


def recorded(case: Case) -> Problem:
    cond = case.cond
    return Problem(
        case.denoiser(), case.guidance, (1, 4, 4), 0,
        lambda first, count, t: (case.x_init[first:][:count], {k: v[first:][:count] for k, v in cond.items()}),
    )  # fmt: skip


def plan_of(finding: Finding, schedule: solvers.Schedule, cost: Cost = Cost()) -> solvers.Plan:  # noqa: B008
    values = finding.values
    nfe = len(values["ratios"])
    one = Learned(
        "dc_solver", "mixture", "0" * 64, schedule, nfe, 1.0, finding.base, finding.objective, 0, {}, cost,
        finding.curve, values,
    )  # fmt: skip
    return dc_solver.on(make_grid(values["grid"], schedule, nfe), values["options"], one)


@pytest.mark.parametrize("case", SEARCHED, ids=lambda case: case.id)
def test_finds_the_ratios_that_the_official_search_found(case: Case) -> None:
    given, seen = case.options, recorded(case)
    settings = {"samples": 16, "iterations": 40, "reference": "official", "variant": given["variant"]}
    found = tune(seen, case.manifest["nfe"], **settings)
    np.testing.assert_allclose(found.values["ratios"], given["dc_ratios"], rtol=0, atol=1e-10)
    ddim = 199
    assert seen.denoiser.calls == ddim + given["search_model_calls"]
    differentiated = (case.manifest["nfe"] - 3) * 40  # every iteration, but at the last step
    guided = 2 if case.guidance != 1 else 1
    assert seen.cost == Cost(16 * guided * seen.denoiser.calls, 0, 16 * guided * differentiated)


def test_the_end_of_the_curve_is_the_error_of_the_plan() -> None:
    for options in ({}, {"order": 2, "corrector_from": 1, "axis": "lambda"}, {"predicts": "noise", "grid": "karras"}):
        seen = problem()
        found = tune(seen, 6, **options)
        x_T, cond = seen.start(0, 10, 1.0)
        target = exact(mixture(VPLinear()), x_T, cond, found.values["times"])(found.values["times"][-1])
        x = solvers.sample(plan_of(found, VPLinear()), mixture(VPLinear()), x_T)
        assert found.curve[-1][1] == pytest.approx(float((x - target).square().mean().sqrt()), rel=1e-9)
        unipc = solvers.plan(
            "unipc", VPLinear(), 6, grid=found.values["grid"], order=options.get("order", 3),
            predicts=options.get("predicts", "data"),
        )  # fmt: skip
        if "corrector_from" not in options:
            x = solvers.sample(unipc, mixture(VPLinear()), x_T)
            assert found.curve[0][1] == pytest.approx(float((x - target).square().mean().sqrt()), rel=1e-9)


def test_the_error_falls_on_other_samples_too() -> None:
    seen = problem(mixture(EDM()))
    found = tune(seen, 6, iterations=40)
    assert found.curve[-1][1] < 0.5 * found.curve[0][1]
    x_T = start(EDM(), 64, seed=9)
    target = exact(mixture(EDM()), x_T, {}, found.values["times"])(EDM().t_end)
    plans = [plan_of(found, EDM()), solvers.plan("unipc", EDM(), 6)]
    tuned, untuned = (float((solvers.sample(p, mixture(EDM()), x_T) - target).square().mean()) for p in plans)
    assert tuned < 0.5 * untuned


def test_every_step_ends_nearer_to_the_reference_than_without() -> None:
    """The last iteration's objective of each step, which the search saw, against that of the ratio 1."""
    seen, grid = problem(), make_grid("logsnr", VPLinear(), 6)
    found = tune(seen, 6, iterations=40, weight_decay=0.0)
    x_T, _ = seen.start(0, 10, 1.0)
    target = exact(mixture(VPLinear()), x_T, {}, grid.times)(grid.times[-1])

    def error(last: float) -> float:
        values = found.values | {"ratios": [*found.values["ratios"][:-1], last]}
        plan = plan_of(Finding("", values, ()), VPLinear())
        return float((solvers.sample(plan, mixture(VPLinear()), x_T) - target).square().mean())

    best = found.values["ratios"][-1]
    assert best != 1
    assert error(best) < min(error(1.0), error(best + 0.05), error(best - 0.05))


def test_only_what_the_search_spends_is_counted() -> None:
    seen = problem()
    found = tune(seen, 5, samples=4, iterations=7)
    spent = [calls for calls, _ in found.curve]
    reference, first = 100, 1
    steps = [1, 1, 7 * 3 + 1, 7 * 3 + 1, 0]  # calls in units of one: an iteration has a backward pass, twice as dear
    assert spent == [4 * (reference + first + sum(steps[:k])) for k in range(6)]
    assert spent[-1] == seen.cost.calls


class Cut(BaseException):
    pass


@dataclass
class Paper:
    """Notes that keep the counters too, as those of `fewstep tune`; the pen breaks after `left` writes."""

    denoiser: Denoiser
    kept: Any = None
    left: int = 99

    def read(self) -> dict[str, Any] | None:
        if self.kept is None:
            return None
        state, counters = copy.deepcopy(self.kept)
        self.denoiser.__dict__.update(counters)
        return state  # type: ignore[no-any-return]

    def write(self, state: dict[str, Any]) -> None:
        counters = {k: getattr(self.denoiser, k) for k in ("passed", "tangents", "backwards")}
        self.kept = copy.deepcopy((state, counters))
        self.left -= 1
        if self.left == 0:
            raise Cut


@pytest.mark.parametrize("when", range(1, 6))
def test_goes_on_after_an_interruption_as_if_there_had_been_none(when: int) -> None:
    whole = tune(problem(), 5)
    first, second = problem(), problem()
    paper = Paper(first.denoiser, left=when)
    with pytest.raises(Cut):
        tune(first, 5, paper)
    resumed = tune(second, 5, Paper(second.denoiser, paper.kept))
    assert resumed == whole
    assert second.denoiser.calls == [1 + 6 + 6, 6 + 6, 6, 0, 0][when - 1]


def test_flow_starts_without_signal_and_ends_on_the_data() -> None:
    schedule, g = RectifiedFlow(shift=3.0), torch.Generator().manual_seed(0)
    x_T = torch.randn(10, 1, 4, 4, dtype=torch.float64, generator=g)
    denoiser = Denoiser(velocity, schedule, "velocity")
    seen = Problem(denoiser, 1.0, (1, 4, 4), 0, lambda first, count, t: (x_T, {}))
    found = tune(seen, 5, iterations=40)
    assert found.values["times"][0] == 1
    assert found.values["times"][-1] == 0
    assert found.curve[-1][1] < found.curve[0][1]
    fine = solvers.sample(solvers.plan("flow_heun", schedule, 1001), Denoiser(velocity, schedule, "velocity"), x_T)
    target = exact(Denoiser(velocity, schedule, "velocity"), x_T, {}, found.values["times"])(0.0)
    assert float((target - fine).square().mean().sqrt()) < 5e-4


def test_at_the_data_the_reference_is_the_data() -> None:
    point = Denoiser(lambda x, t: torch.full_like(x, 0.3), EDM(), "data")
    x_T = start(EDM(), 3)
    torch.testing.assert_close(exact(point, x_T, {}, [80.0, 1.0, 0.0])(0.0), torch.full_like(x_T, 0.3))


def test_a_budget_without_ratios_takes_no_search() -> None:
    seen = problem()
    found = tune(seen, 2)
    assert found.values["ratios"] == [1.0, 1.0]
    assert seen.cost == Cost(10 * 102)


def test_float32_is_enough() -> None:
    def single(first: int, count: int, t: float) -> tuple[Tensor, Cond]:
        return start(EDM(), count).float(), {}

    found = tune(Problem(mixture(EDM()), 1.0, (12,), 0, single), 6, iterations=20)
    double = tune(problem(mixture(EDM())), 6, iterations=20)
    np.testing.assert_allclose(found.values["ratios"], double.values["ratios"], atol=0.05)


@pytest.mark.parametrize(
    ("options", "grid", "written"),
    [
        (Options(), "", "unipc"),
        (Options(order=2, variant="bh1", dc_order=1), "karras", "unipc(order=2, variant=bh1, grid=karras)"),
        (Options(predicts="noise", corrector_from=10), "", "unipc(predicts=noise, corrector=false)"),
        (Options(corrector_from=1), "", "unipc"),
    ],
)
def test_the_base_is_unipc_as_one_would_write_it(options: Options, grid: str, written: str) -> None:
    assert base(options, grid, 10) == written


def test_what_it_found_says_how() -> None:
    found = tune(problem(mixture(VPDiscrete.linear())), 4, reference="official", order=2, grid="logsnr")
    assert found.base == "unipc(order=2, grid=logsnr)"
    assert found.objective == "distance to DDIM-200, step by step"
    assert tune(problem(), 1).objective == "truncation error, step by step"
    assert found.values["grid"] == "logsnr"
    assert found.values["options"] == asdict(Options(order=2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reference": "ddim"}, "reference='ddim' is none of exact, official"),
        ({"reference": "official"}, "VPDiscrete schedule of 200 labels or more, not this VPLinear"),
        ({"samples": 0}, "at least 1 sample and 1 iteration, not 0 and 5"),
        ({"iterations": 0}, "at least 1 sample and 1 iteration, not 10 and 0"),
        ({"dc_order": 0}, "dc_order=0 must lie between 1 and 3"),
        ({"grid": "trailing"}, "VPDiscrete"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Option], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tune(problem(), 5, **settings)


def test_a_metric_is_refused() -> None:
    with pytest.raises(ValueError, match="give no metric"):
        tune(problem(metric=("frechet_pixels", lambda x: 0.0)), 5)


def test_the_official_reference_begins_below_its_first_label() -> None:
    """DDIM-200's first label is 996: nothing is known at t = 0.997."""
    with pytest.raises(ValueError, match=r"has no state above t = 0\.99"):
        tune(problem(mixture(VPDiscrete.linear())), 400, reference="official")
