"""DPM-Solver and DPM-Solver++: the papers' coefficients, the orders of the updates, and the limits."""

from collections.abc import Mapping
from functools import cache
from math import expm1

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

import solvers
from solvers.dpm_solver_steps import blocks
from solvers.grid import Grid, block_orders, make_grid
from solvers.plan import Combine, Evaluate, Option
from solvers.schedule import Schedule
from tests.solvers.common import denoiser, draws, start

VP = solvers.VPLinear()
NOISE = ("dpm_solver_1", "dpm_solver_2", "dpm_solver_3", "dpm_solver_fast", "dpm_solver_2m", "dpm_solver_3m")
DATA = ("dpmpp_2s", "dpmpp_3s", "dpmpp_2m", "dpmpp_3m", "dpmpp_sde_2m")
SINGLESTEP = ("dpm_solver_2", "dpm_solver_3", "dpmpp_2s", "dpmpp_3s")
MULTISTEP = ("dpm_solver_2m", "dpm_solver_3m", "dpmpp_2m", "dpmpp_3m", "dpmpp_sde_2m")


def plan_at(name: str, times: list[float], schedule: Schedule = VP, /, **options: Option) -> solvers.Plan:
    plan = solvers.method(name).build(schedule, times=times, options=options)
    assert isinstance(plan, solvers.Plan)
    return plan


def uniform(lam_end: float, steps: int, schedule: Schedule = VP) -> list[float]:
    """Times equally spaced in lambda from -2 to lam_end."""
    return [float(t) for t in schedule.t_of_lam(np.linspace(-2.0, lam_end, steps + 1))]


def in_outputs(plan: solvers.Plan) -> dict[int, float]:
    """The sample's coefficients over x_T (0) and the network's outputs (1, 2, ... in the order of the calls)."""
    width = 1 + plan.nfe
    rows: dict[int, NDArray[np.float64]] = {0: np.eye(width)[0]}
    calls = 0
    for i in plan.instructions:
        if isinstance(i, Evaluate):
            calls += 1
            rows[i.out] = np.eye(width)[calls]
        elif isinstance(i, Combine):
            rows[i.out] = np.sum([c * rows[r] for c, r in i.terms], axis=0)
    return {k: float(v) for k, v in enumerate(rows[plan.instructions[-1].out])}


def levels(times: list[float]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    grid = Grid(VP, tuple(times))
    return grid.alpha, grid.sigma, grid.lam


def test_dpm_solver_2_is_the_papers_midpoint() -> None:
    times = uniform(0.5, 2)
    alpha, sigma, lam = levels(times)
    h = lam[2] - lam[0]
    plan = plan_at("dpm_solver_2", times)
    expected = {0: alpha[2] / alpha[0], 1: 0.0, 2: -sigma[2] * expm1(h)}  # Algorithm 1, r_1 = 1/2
    assert in_outputs(plan) == pytest.approx(expected, abs=1e-14)
    middle = next(i for i in plan.instructions if isinstance(i, Combine))
    assert [c for c, _ in middle.terms] == pytest.approx([alpha[1] / alpha[0], -sigma[1] * expm1(h / 2)])


def test_dpm_solver_3_is_the_papers_third_order() -> None:
    times = uniform(1.0, 3)
    alpha, sigma, lam = levels(times)
    h, r1, r2 = lam[3] - lam[0], 1 / 3, 2 / 3
    plan = plan_at("dpm_solver_3", times, lower_order_final="never")
    weight = sigma[3] / r2 * (expm1(h) / h - 1)  # Algorithm 2
    expected = {0: alpha[3] / alpha[0], 1: -sigma[3] * expm1(h) + weight, 2: 0.0, 3: -weight}
    assert in_outputs(plan) == pytest.approx(expected, abs=1e-14)
    second = [i for i in plan.instructions if isinstance(i, Combine)][1]
    inner = sigma[2] * r2 / r1 * (expm1(r2 * h) / (r2 * h) - 1)
    terms = [alpha[2] / alpha[0], -sigma[2] * expm1(r2 * h) + inner, -inner]
    assert [c for c, _ in second.terms] == pytest.approx(terms)


def test_dpmpp_2s_is_the_papers_algorithm_1() -> None:
    times = [0.9, 0.6, 0.5]
    alpha, sigma, lam = levels(times)
    h = lam[2] - lam[0]
    r = (lam[1] - lam[0]) / h
    weight = -alpha[2] * expm1(-h)
    expected = {0: sigma[2] / sigma[0], 1: weight * (1 - 1 / (2 * r)), 2: weight / (2 * r)}
    assert in_outputs(plan_at("dpmpp_2s", times)) == pytest.approx(expected, abs=1e-14)


def test_dpmpp_2m_is_the_papers_algorithm_2() -> None:
    times = [0.9, 0.6, 0.5]
    alpha, sigma, lam = levels(times)
    h0, h = np.diff(lam)
    first, weight = -alpha[1] * expm1(-h0), -alpha[2] * expm1(-h)
    expected = {
        0: sigma[2] / sigma[0],
        1: sigma[2] / sigma[1] * first - weight * h / (2 * h0),
        2: weight * (1 + h / (2 * h0)),
    }
    assert in_outputs(plan_at("dpmpp_2m", times, lower_order_final="never")) == pytest.approx(expected, abs=1e-14)


def polynomial(degree: int, name: str, options: Mapping[str, Option], blocks_of: int) -> float:
    """By how much one full-order update misses the exact step when the output is lambda^degree."""
    times = uniform(0.4, blocks_of)
    alpha, sigma, lam = levels(times)
    plan = plan_at(name, times, **options)
    data = plan.predicts == "data"
    found = in_outputs(plan)
    base = found[0] * 1.0 + sum(found[k + 1] * lam[k] ** degree for k in range(plan.nfe))
    s = np.polynomial.legendre.leggauss(40)
    nodes, weights = (lam[-1] - lam[0]) / 2 * s[0] + (lam[-1] + lam[0]) / 2, (lam[-1] - lam[0]) / 2 * s[1]
    integral = weights @ (np.exp(nodes if data else -nodes) * nodes**degree)
    exact = sigma[-1] / sigma[0] + sigma[-1] * integral if data else alpha[-1] / alpha[0] - alpha[-1] * integral
    return float(abs(base - exact))


@pytest.mark.parametrize("prefix", ["dpm_solver_", "dpmpp_"])
def test_an_update_is_exact_for_outputs_that_are_polynomials_of_lambda(prefix: str) -> None:
    s = "s" if prefix == "dpmpp_" else ""
    taylor: dict[str, Option] = {"solver_type": "taylor"}
    never: dict[str, Option] = {"lower_order_final": "never"}
    for degree in (0, 1):
        assert polynomial(degree, f"{prefix}2{s}", taylor, 2) < 1e-13
    for degree in (0, 1, 2):
        assert polynomial(degree, f"{prefix}3{s}", taylor | never, 3) < 1e-13
    assert polynomial(1, f"{prefix}2{s}", {}, 2) > 1e-3  # the halved weight is of second order all the same
    assert polynomial(1, f"{prefix}3{s}", never, 3) < 1e-13
    assert polynomial(2, f"{prefix}3{s}", never, 3) > 1e-4


@pytest.mark.parametrize("name", ["dpmpp_3m", "dpm_solver_3m"])
def test_the_exact_third_order_step_integrates_parabolas_and_the_official_one_does_not(name: str) -> None:
    lam = levels(uniform(0.4, 3))[2]

    def missed(exact: bool) -> float:
        """The last step's output coefficients, on the output lambda^2, against the integral."""
        plan = plan_at(name, uniform(0.4, 3), exact=exact, lower_order_final="never")
        last = plan.instructions[-1]
        assert isinstance(last, Combine)
        calls = {i.out: k for k, i in enumerate(i for i in plan.instructions if isinstance(i, Evaluate))}
        found = sum(c * lam[calls[r]] ** 2 for c, r in last.terms if r in calls)
        grid, sign = Grid(VP, plan.times), 1 if plan.predicts == "data" else -1
        s, w = np.polynomial.legendre.leggauss(40)
        at = (lam[3] - lam[2]) / 2 * s + (lam[3] + lam[2]) / 2
        scale = grid.sigma[3] if sign == 1 else -grid.alpha[3]
        return float(abs(found - scale * (lam[3] - lam[2]) / 2 * (w @ (np.exp(sign * at) * at**2))))

    assert missed(exact=True) < 1e-13
    assert missed(exact=False) > 1e-3


@pytest.mark.parametrize("schedule", [VP, solvers.EDM()], ids=["VP", "EDM"])
def test_order_1_is_ddim(schedule: Schedule) -> None:
    times = [float(t) for t in np.linspace(0.9, 0.05, 6) * schedule.t_max]
    x_T, network = start(schedule, 3), denoiser(schedule)
    x = solvers.sample(plan_at("ddim", times, schedule), network, x_T)
    torch.testing.assert_close(solvers.sample(plan_at("dpm_solver_1", times, schedule), network, x_T), x)
    ancestral = plan_at("ddim", times[:2], schedule, eta=1.0)
    z = draws(ancestral, 3)
    for solver_type in ("midpoint", "heun"):
        one = plan_at("dpmpp_sde_2m", times[:2], schedule, solver_type=solver_type)
        found, wanted = (solvers.sample(p, network, x_T, noise=lambda k: z[k]) for p in (one, ancestral))
        torch.testing.assert_close(found, wanted)


@given(st.lists(st.integers(1, 999), min_size=2, max_size=9, unique=True))
def test_fast_without_noise_is_dpm_solver_3(labels: list[int]) -> None:
    times = [n / 1000 for n in sorted(labels, reverse=True)]
    assert plan_at("dpm_solver_fast", times).instructions == plan_at("dpm_solver_3", times).instructions


@pytest.mark.parametrize("order", [2, 3])
def test_singlestep_updates_follow_the_official_sequence(order: int) -> None:
    rule = "always" if order == 3 else "never"
    for n in range(1, 30):
        grid = make_grid("logsnr", VP, n)
        assert blocks(grid, order, rule) == block_orders(order, n)
        assert sum(blocks(grid, order, "never")) == n
    assert blocks(make_grid("logsnr", VP, 6), 2, "always") == [2, 2, 1, 1]
    assert blocks(make_grid("logsnr", VP, 6), 3, "never") == [3, 3]
    assert blocks(make_grid("logsnr", VP, 12), 3, "below_10") == [3, 3, 3, 3]
    assert blocks(make_grid("logsnr", VP, 9), 3, "below_10") == [3, 3, 2, 1]


def test_singlestep_takes_infinite_steps_at_order_1() -> None:
    flow = solvers.RectifiedFlow()
    assert blocks(Grid(flow, (1.0, 0.7, 0.4, 0.0)), 3, "never") == [1, 1, 1]
    assert blocks(Grid(flow, (1.0, 0.8, 0.6, 0.4, 0.2, 0.1)), 3, "never") == [1, 2, 2]
    assert blocks(Grid(flow, (0.9, 0.8, 0.6, 0.4, 0.2, 0.0)), 3, "never") == [3, 1, 1]


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("nfe", range(1, 9))
@pytest.mark.filterwarnings("error")
def test_data_prediction_goes_from_pure_noise_to_the_data(name: str, nfe: int) -> None:
    flow = solvers.RectifiedFlow()
    network = solvers.Denoiser(lambda x, t: torch.full_like(x, 0.7), flow, "data")
    plan = plan_at(name, [float(t) for t in np.linspace(1, 0, nfe + 1)], flow)
    x = solvers.sample(plan, network, start(flow, 3), noise=lambda k: draws(plan, 3)[k])
    torch.testing.assert_close(x, torch.full_like(x, 0.7), rtol=0, atol=1e-12)
    assert plan.nfe == nfe


@pytest.mark.parametrize("name", [*SINGLESTEP, *MULTISTEP])
def test_the_last_step_onto_the_data_is_of_order_1_under_any_rule(name: str) -> None:
    plan = plan_at(name, [80.0, 20.0, 5.0, 2.0, 0.5, 0.0], solvers.EDM(), lower_order_final="never")
    last = plan.instructions[-1]
    state, output = next((i.state, i.out) for i in reversed(plan.instructions) if isinstance(i, Evaluate))
    wanted = {output: 1.0} if plan.predicts == "data" else {state: 1.0, output: -0.5}
    assert isinstance(last, Combine)
    assert {r: c for c, r in last.terms} == pytest.approx(wanted)


@pytest.mark.parametrize("name", NOISE)
@pytest.mark.filterwarnings("error")
def test_noise_prediction_lands_on_the_data_and_needs_a_signal_to_start_from(name: str) -> None:
    network = solvers.Denoiser(lambda x, t: torch.full_like(x, 0.7), solvers.EDM(), "data")
    for times in ([80.0, 0.0], [80.0, 5.0, 0.0], [80.0, 5.0, 1.0, 0.0], [80.0, 20.0, 5.0, 2.0, 1.0, 0.5, 0.0]):
        x = solvers.sample(plan_at(name, times, solvers.EDM()), network, start(solvers.EDM(), 3))
        torch.testing.assert_close(x, torch.full_like(x, 0.7), rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match=r"cannot start from t = 1\.0, where there is no signal"):
        plan_at(name, [1.0, 0.5, 0.2], solvers.RectifiedFlow())


@pytest.mark.parametrize("name", MULTISTEP)
def test_multistep_lowers_its_last_steps_by_the_published_rules(name: str) -> None:
    order = 3 if "3m" in name else 2

    def history(steps: int, **options: Option) -> list[int]:
        """How many outputs each step combines."""
        plan = plan_at(name, list(make_grid("logsnr", VP, steps).times), **options)
        outputs = {i.out for i in plan.instructions if isinstance(i, Evaluate)}
        return [len({r for _, r in i.terms} & outputs) for i in plan.instructions if isinstance(i, Combine)]

    def expected(steps: int, lowers: bool) -> list[int]:
        return [min(order, i + 1, steps - i if lowers else order) for i in range(steps)]

    for rule, below in (("never", 0), ("below_10", 10), ("below_15", 15), ("always", 99)):
        for steps in (1, 2, 3, 9, 10, 14, 15, 20):
            assert history(steps, lower_order_final=rule) == expected(steps, steps < below), (rule, steps)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        *((n, {"lower_order_final": "sometimes"}, rf"{n}: lower_order_final='sometimes' is none of never, below_10")
          for n in (*SINGLESTEP, *MULTISTEP)),
        *((n, {"solver_type": "euler"}, rf"{n}: solver_type='euler' is none of dpmsolver, taylor")
          for n in (*SINGLESTEP, "dpm_solver_2m", "dpmpp_2m")),
        ("dpmpp_sde_2m", {"solver_type": "taylor"}, r"dpmpp_sde_2m: solver_type='taylor' is none of midpoint, heun"),
        ("dpmpp_2s", {"solver_type": "midpoint"}, r"is none of dpmsolver, taylor$"),
        ("dpm_solver_fast", {"eta": 1.5}, r"dpm_solver_fast: eta=1\.5 must lie in \[0, 1\]"),
        ("dpm_solver_fast", {"eta": -0.1}, r"eta=-0\.1 must lie"),
        ("dpmpp_3m", {"exact": 1}, r"dpmpp_3m: exact=1 is not a bool"),
    ],
)  # fmt: skip
def test_bad_options_are_refused_in_one_line(name: str, options: dict[str, Option], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_at(name, [0.9, 0.5, 0.1], **options)


def moments(plan: solvers.Plan, mean: float, std: float) -> tuple[float, float]:
    """The sample's exact mean and standard deviation when the data are one Gaussian: the plan is linear then."""
    width = 2 + plan.draws  # x_T, the draws, 1
    rows: dict[int, NDArray[np.float64]] = {0: np.eye(width)[0]}
    for i in plan.instructions:
        if isinstance(i, Combine):
            rows[i.out] = np.sum([c * rows[r] for c, r in i.terms], axis=0)
            for c, k in i.noise:
                rows[i.out][1 + k] += c
        elif isinstance(i, Evaluate):
            alpha, sigma = float(plan.schedule.alpha(i.t)), float(plan.schedule.sigma(i.t))
            eps = sigma * (rows[i.state] - alpha * mean * np.eye(width)[-1]) / (alpha**2 * std**2 + sigma**2)
            rows[i.out] = eps if plan.predicts == "noise" else (rows[i.state] - sigma * eps) / alpha
    row = rows[plan.instructions[-1].out]
    alpha, sigma = (float(f(plan.times[0])) for f in (plan.schedule.alpha, plan.schedule.sigma))
    spread = row[0] ** 2 * (alpha**2 * std**2 + sigma**2) + (row[1:-1] ** 2).sum()
    return float(row[0] * alpha * mean + row[-1]), float(np.sqrt(spread))


@pytest.mark.parametrize(
    ("name", "options", "order"),
    [
        ("dpmpp_sde_2m", {"lower_order_final": "never"}, 2),
        ("dpmpp_sde_2m", {"lower_order_final": "never", "solver_type": "heun"}, 2),
        ("ddim", {"eta": 1.0}, 1),
    ],
)
@pytest.mark.parametrize("schedule", [VP, solvers.EDM()], ids=["VP", "EDM"])
def test_the_sde_samples_one_gaussian_at_its_order_in_distribution(
    name: str, options: dict[str, Option], order: int, schedule: Schedule
) -> None:
    t_end = 1e-2 * schedule.t_max**0.5
    alpha, sigma = float(schedule.alpha(t_end)), float(schedule.sigma(t_end))
    errors = []
    for steps in (50, 100, 200):
        plan = plan_at(name, list(make_grid("logsnr", schedule, steps, t_end=t_end).times), schedule, **options)
        mean, std = moments(plan, 0.7, 0.3)
        assert mean == pytest.approx(alpha * 0.7, abs=1e-12)
        errors.append(abs(std - np.hypot(alpha * 0.3, sigma)))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)
    assert np.log2(errors[1] / errors[2]) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_what_fast_adds_is_eta_times_what_ddpm_adds(eta: float) -> None:
    times = uniform(4.0, 9)
    first = next(
        i for i in plan_at("dpm_solver_fast", times, eta=eta).instructions if isinstance(i, Combine) and i.noise
    )
    ddim = plan_at("ddim", [times[0], times[3]], eta=eta).instructions[-1]
    assert isinstance(ddim, Combine)
    assert first.noise[0] == pytest.approx(ddim.noise[0])


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_noising_back_up_keeps_the_distribution(eta: float) -> None:
    plan = solvers.method("dpm_solver_fast").build(VP, 60, t_end=1e-2, options={"eta": eta})
    assert isinstance(plan, solvers.Plan)
    assert plan.draws == 20  # none after the last of 21 updates, which ends where the grid does
    mean, std = moments(plan, 0.7, 0.3)
    alpha, sigma = float(VP.alpha(1e-2)), float(VP.sigma(1e-2))
    assert mean == pytest.approx(alpha * 0.7, abs=1e-9)
    assert std == pytest.approx(float(np.hypot(alpha * 0.3, sigma)), abs=1e-3)


def short_steps(name: str, steps: int, **options: Option) -> Tensor:
    plan = plan_at(name, list(make_grid("logsnr", VP, steps, t_end=1e-2).times), **options)
    return solvers.sample(plan, denoiser(VP), start(VP, 4))


@cache
def reference() -> Tensor:
    return short_steps("dpm_solver_3m", 1536, exact=True)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dpm_solver_3", {}),
        ("dpmpp_3s", {}),
        ("dpmpp_3s", {"solver_type": "taylor"}),
        ("dpmpp_3s", {"solver_type": "midpoint"}),
        ("dpm_solver_3m", {"exact": True}),
        ("dpmpp_3m", {"exact": True}),
        ("dpm_solver_3m", {}),
        ("dpmpp_3m", {}),
    ],
)
def test_third_order_shows_where_the_steps_are_short(name: str, options: Mapping[str, Option]) -> None:
    """Not on 20 steps, nor where the steps are no multiple of 3: what is left over is an update of a lower order."""
    never: dict[str, Option] = {"lower_order_final": "never", **options}
    runs = (short_steps(name, n, **never) for n in (192, 384))
    coarse, fine = (float((x - reference()).norm()) for x in runs)
    order = plan_at(name, [0.9, 0.5], **options).order
    assert np.log2(coarse / fine) == pytest.approx(order, abs=0.2)
