"""The fitted solver: its closed-form coefficients, its slopes and gradients, what it costs, what it is worth."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import solvers
from bench.checkpoints import Guide, Task, load
from solvers import noise
from solvers.learned import Learned
from solvers.model import Denoiser, column
from solvers.schedule import Schedule
from solvers.testing import mixture
from solvers.tune import Finding, NoNotes, Problem, tuner
from solvers.tune.descent import Neighbourhood, descend
from solvers.tune.fitted import Line, affordable, even, improve, secant, slopes
from solvers.tune.least_squares import RIDGE, STRAY, Examples, exact_trajectories
from solvers.tune.reference import Reference, reference

VP, EDM, FLOW = solvers.VPLinear(), solvers.EDM(), solvers.RectifiedFlow()
SMALL: dict[str, solvers.Option] = {"samples": 6, "calls": 24}
BEST = {"gmm": [("ghvb", "quadratic"), ("ipndm", "logsnr"), ("dpmpp_3s", "quadratic"), ("deis_tab3", "quadratic")],
        "digits": [("ghvb", "karras"), ("ipndm", "logsnr"), ("deis_tab3", "karras"), ("unipc", "karras")]}  # fmt: skip


def problem(schedule: Schedule = VP, denoiser: Denoiser | None = None, metric: Any = None) -> Problem:
    """The mixture of twelve dimensions, from starts of which sample i's depends on i alone."""

    def begin(first: int, count: int, t: float) -> tuple[Tensor, dict[str, Tensor]]:
        z = noise.normal(7, noise.TUNING + noise.LATENT, first, count, (12,))
        return schedule.prior_std(t) * torch.from_numpy(z), {}

    return Problem(denoiser or mixture(schedule), 1.0, (12,), 7, begin, metric)


def bundled(name: str, scale: float, dtype: torch.dtype = torch.float32) -> Problem:
    c = load(name)

    def begin(first: int, count: int, t: float) -> tuple[Tensor, dict[str, Tensor]]:
        x_T = c.latents(0, first, count, t, noise.TUNING)
        return x_T.to(dtype), {"y": c.labels(0, first, count, None, noise.TUNING)}

    return Problem(c.denoiser(Task(Guide(scale)), torch.device("cpu"), dtype), scale, c.shape, 0, begin)


def tune(asked: Problem, nfe: int | None = 5, notes: Any = None, **settings: solvers.Option) -> Finding:
    return tuner("fitted").tune(asked, nfe, notes or NoNotes(), SMALL | settings)


def plan_of(found: Finding) -> solvers.Plan:
    return solvers.Plan.from_json(json.dumps(found.values["plan"]))


def examples(asked: Problem, count: int = 6, memory: int = 16) -> Examples:
    x_T, cond = asked.start(0, count, asked.schedule.t_max)
    return Examples(asked.denoiser, x_T, cond, exact_trajectories(asked.denoiser, x_T, cond, 24), memory)


def rmse(plan: solvers.Plan, e: Examples) -> float:
    x = solvers.sample(plan, e.denoiser, e.start, cond=e.cond)
    return float((x - e.exact.at(plan.times[-1])).double().square().mean().sqrt())


def moved(rows: list[list[float]], i: int, j: int, by: float) -> list[list[float]]:
    return [[c + by * ((k, m) == (i, j)) for m, c in enumerate(row)] for k, row in enumerate(rows)]


@pytest.mark.parametrize("memory", [16, 2])
@pytest.mark.parametrize("schedule", [VP, EDM])
def test_each_step_is_the_closest_that_its_registers_allow(schedule: Schedule, memory: int) -> None:
    e = examples(problem(schedule), memory=memory)
    fit = e.fit(Line.of(e.exact).times(even(e.exact, 5, 0.5)))
    written: dict[int, Tensor] = {0: e.start}
    instructions = iter(fit.solver.instructions())

    def keep(instruction: Any, x: Tensor) -> None:
        written[instruction.out] = x.clone()

    solvers.sample(fit.solver.plan(schedule), e.denoiser, e.start, callback=keep)
    for i, combine in enumerate(list(instructions)[1::2]):
        registers = torch.stack([written[r] for _, r in combine.terms]).flatten(1)
        missed = (written[combine.out] - e.exact.at(fit.solver.times[i + 1])).flatten()
        scale = registers.norm(dim=1)
        shrunk = RIDGE * scale * torch.tensor([c for c, _ in combine.terms])
        torch.testing.assert_close(registers @ missed / scale, -shrunk, rtol=1e-3, atol=1e-9)
        t = fit.solver.times[i + 1]
        unit = 1.0 if i == 4 else np.hypot(schedule.alpha(t), schedule.sigma(t)) / STRAY
        torch.testing.assert_close(float(unit) * fit.missed[i] * len(missed) ** 0.5, missed, rtol=1e-6, atol=1e-9)
        assert len(combine.terms) == 1 + min(i + 1, memory)


@pytest.mark.parametrize("schedule", [VP, EDM, FLOW])
@pytest.mark.parametrize("nfe", [1, 2, 3])
def test_a_round_gaussian_is_sampled_exactly_in_any_number_of_calls(schedule: Schedule, nfe: int) -> None:
    """Its trajectories are straight in x_T and the first output, whatever the times."""
    mean = torch.linspace(-1, 1, 12, dtype=torch.float64)

    def data(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (column(f(t.numpy()), x) for f in (schedule.alpha, schedule.sigma))
        return mean + 0.25 * alpha / (0.25 * alpha**2 + sigma**2) * (x - alpha * mean)

    asked = problem(schedule, Denoiser(data, schedule, "data"))
    plan = plan_of(tune(asked, nfe, calls=100))
    a_round = nfe * (nfe - 1) // 2 + 3 * nfe if nfe > 1 else 0
    assert asked.cost.calls == 6 * (100 + 2 * nfe + 2 * a_round)
    x_T, _ = asked.start(50, 4, schedule.t_max)
    alpha, sigma = (f([schedule.t_max, schedule.t_end]) for f in (schedule.alpha, schedule.sigma))
    spread = np.sqrt(0.25 * alpha**2 + sigma**2)
    exact = alpha[1] * mean + spread[1] / spread[0] * (x_T - alpha[0] * mean)
    torch.testing.assert_close(solvers.sample(plan, asked.denoiser, x_T), exact, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["gmm", "digits"])
@pytest.mark.parametrize("settings", [{}, {"memory": 2}, {"gradients": 3}, {"rounds": 0}])
def test_the_plan_is_what_the_curve_says(name: str, settings: dict[str, Any]) -> None:
    asked = bundled(name, 1.0)
    found, schedule = tune(asked, 5, **settings), asked.schedule
    plan = plan_of(found)
    assert (plan.nfe, plan.times[0], plan.times[-1]) == (5, schedule.t_max, schedule.t_end)
    assert plan.call_times == plan.times[:-1]
    assert plan.buffers == (3 if "memory" in settings else 6)
    assert rmse(plan, examples(bundled(name, 1.0))) == pytest.approx(found.curve[-1][1], rel=1e-3)
    assert found.curve[-1][0] == asked.cost.calls
    errors = [error for _, error in found.curve]
    assert len(errors) == 1 + settings.get("rounds", 2) + ("gradients" in settings)
    assert name == "gmm" or settings.get("rounds") == 0 or errors[-1] < 0.9 * errors[0]


def test_equal_shares_are_equal_and_of_power_0_logsnr() -> None:
    exact = examples(problem()).exact
    np.testing.assert_allclose(even(exact, 6, 0.0), np.log((exact.lam[-1] - exact.lam[0]) / 6), atol=1e-9)
    line = Line.of(exact)
    lam = line.lam(even(exact, 4, 1.0))
    D = exact.y - exact.slope
    lengths = (D[1:] - D[:-1]).flatten(1).square().mean(1).sqrt().numpy()
    covered = np.interp(lam, exact.lam, np.append(0, np.cumsum(lengths)))
    np.testing.assert_allclose(np.diff(covered), lengths.sum() / 4, rtol=1e-9)
    times = line.times(even(exact, 4, 1.0))
    np.testing.assert_allclose(VP.lam(times), lam, atol=1e-9)


def test_data_of_one_point_gets_even_steps() -> None:
    lam = np.linspace(-4.0, 4.0, 33)
    still = Reference(VP, lam, torch.ones(33, 2, 3), torch.zeros(33, 2, 3))
    np.testing.assert_allclose(even(still, 4, 0.5), np.log(2.0), rtol=1e-12)


def test_gaps_move_times_as_their_jacobian_says() -> None:
    line, log_gaps, h = Line(VP, -5.0, 4.0), np.array([0.3, -0.2, 0.5, 0.0]), 1e-6
    for j in range(4):
        e = h * (np.arange(4) == j)
        difference = (line.lam(log_gaps + e) - line.lam(log_gaps - e)) / (2 * h)
        np.testing.assert_allclose(line.jacobian(log_gaps)[:, j], difference[1:-1], atol=1e-8)


def test_slopes_are_those_of_whole_fits_at_half_the_calls() -> None:
    asked = problem()
    e = examples(asked)
    line, log_gaps = Line.of(e.exact), even(e.exact, 5, 0.5)
    fit, before = e.fit(line.times(log_gaps)), asked.denoiser.passed
    J = slopes(e, line, log_gaps, fit)
    assert asked.denoiser.passed - before == 6 * (4 + 3 + 2 + 1)
    lam, h = line.lam(log_gaps), 1e-4
    for i in (1, 3):
        low, high = (e.fit(line.at(lam + s * h * (np.arange(6) == i))).missed.flatten() for s in (-1, 1))
        exact = (high - low) / (2 * h)
        assert float((J[:, i - 1] - exact).norm()) < 0.1 * float(exact.norm())  # J is of steps of 5 % of a gap


def test_slopes_are_corrected_along_the_step_alone() -> None:
    g = torch.Generator().manual_seed(0)
    J, step, change = (torch.randn(*shape, generator=g) for shape in ((5, 3), (3,), (5,)))
    corrected, across = secant(J, step, change), torch.linalg.cross(step, torch.ones(3))
    torch.testing.assert_close(corrected @ step, change)
    torch.testing.assert_close(corrected @ across, J @ across)


def test_no_round_misses_more() -> None:
    e = examples(bundled("gmm", 1.0))
    line, log_gaps = Line.of(e.exact), even(e.exact, 6, 0.0)
    fit, damping, refused = e.fit(line.times(log_gaps)), 1e-2, 0
    for _ in range(3):
        found, better, then = improve(e, line, log_gaps, fit, damping)
        assert better.objective <= fit.objective
        assert better.solver.times == line.times(found)
        if better.objective == fit.objective:
            refused += 1
            assert np.array_equal(found, log_gaps)
            assert then == pytest.approx(5**3 * damping)
        log_gaps, fit, damping = found, better, then
    assert refused == 1


def around(memory: int = 16) -> Neighbourhood:
    e = examples(bundled("gmm", 1.0, torch.float64), 4, memory)
    line, log_gaps = Line.of(e.exact), even(e.exact, 4, 0.5)
    return Neighbourhood.of(e, e.fit(line.times(log_gaps)), (line.first, line.last), log_gaps)


@pytest.mark.parametrize("memory", [16, 2])
def test_gradients_of_coefficients_and_times_are_those_of_differences(memory: int) -> None:
    near = around(memory)
    assert float(near.error(near.centre)) == pytest.approx(near.fit.error, rel=1e-9)
    point = torch.linspace(-0.3, 0.4, len(near.centre), dtype=torch.float64).requires_grad_()
    near.error(point).backward()
    assert point.grad is not None
    assert len(point) == (2 + 3 + 4 + 5 if memory == 16 else 2 + 3 + 3 + 3) + 4  # the last four move the times
    for k, slope in enumerate(point.grad.tolist()):
        h = torch.zeros_like(point)
        h[k] = 1e-5
        with torch.no_grad():
            difference = float(near.error(point + h) - near.error(point - h)) / 2e-5
        assert slope == pytest.approx(difference, rel=1e-5, abs=1e-8)


def test_descent_lowers_the_error_and_counts_its_passes() -> None:
    near = around()
    denoiser = near.examples.denoiser
    passed = denoiser.passed
    solver, error = descend(near, 12)
    evaluated = denoiser.backwards // (4 * 3)  # of 4 samples and calls, the first of which follows from no unknown
    assert 12 <= evaluated <= 16
    assert (denoiser.passed - passed, denoiser.backwards) == (evaluated * 4 * (4 + 3), evaluated * 4 * 3)
    assert error < 0.98 * near.fit.error
    assert rmse(solver.plan(VP), near.examples) == pytest.approx(error, rel=1e-9)


def test_a_unit_of_each_coefficient_moves_the_state_by_the_error_and_no_other_way_twice() -> None:
    near = around(memory=2)
    for axes, gram in zip(near.axes, near.fit.grams, strict=True):
        torch.testing.assert_close(
            axes.T @ gram @ axes, near.fit.error**2 * torch.eye(len(gram)).double(), rtol=0, atol=1e-9
        )


def test_more_gradients_find_nothing_worse() -> None:
    errors = [descend(around(), k)[1] for k in range(1, 9)]
    assert errors[0] <= around().fit.error
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(("name", "nfe"), [("gmm", 5), ("digits", 4), ("digits", 8)])
def test_it_beats_what_needs_no_tuning_on_other_samples_at_no_more_than_dc_solvers_cost(name: str, nfe: int) -> None:
    asked = bundled(name, 1.0)
    plan = plan_of(tuner("fitted").tune(asked, nfe, NoNotes(), {}))
    assert asked.cost.calls <= 10 * (100 + nfe + 120 * (nfe - 3))
    c = load(name)
    x_T, cond = c.latents(0, 0, 64, c.schedule.t_max).float(), {"y": c.labels(0, 0, 64)}
    exact = reference(asked.denoiser, x_T, cond, c.schedule.t_max, c.schedule.t_end, 64).at(c.schedule.t_end)

    def error(plan: solvers.Plan) -> float:
        return float((solvers.sample(plan, asked.denoiser, x_T, cond=cond) - exact).square().mean().sqrt())

    t_end = c.schedule.t_end
    others = [error(solvers.plan(other, c.schedule, nfe, grid=grid, t_end=t_end)) for other, grid in BEST[name]]
    assert error(plan) < 0.6 * min(others)


def test_guided_calls_count_double() -> None:
    one, four = bundled("gmm", 1.0), bundled("gmm", 4.0)
    for asked in (one, four):
        tune(asked, 4)
    assert four.cost.calls == 2 * one.cost.calls


def test_all_that_is_spent_is_as_planned() -> None:
    for nfe in (1, 2, 4, 10):
        asked = problem()
        tuner("fitted").tune(asked, nfe, NoNotes(), {})
        samples = affordable(nfe, 40, 2)
        searched = 10 * (100 + nfe + 120 * max(0, nfe - 3))
        each = 40 + 2 * nfe + (nfe > 1) * 2 * (nfe * (nfe - 1) // 2 + 3 * nfe)
        assert asked.cost.calls == samples * each <= searched
        assert nfe == 1 or (samples + 1) * each > searched


class InterruptError(Exception):
    pass


class Kept:
    """Notes in memory, with the counters beside them, of one who is interrupted after some writes."""

    def __init__(self, asked: Problem, after: int) -> None:
        self.asked, self.after, self.state, self.passed = asked, after, None, 0

    def read(self) -> Any:
        self.asked.denoiser.passed = self.passed
        return self.state

    def write(self, state: Any) -> None:
        self.state, self.passed = state, self.asked.denoiser.passed
        self.after -= 1
        if self.after == 0:
            raise InterruptError


@pytest.mark.parametrize(("name", "scale"), [("gmm", 1.0), ("digits", 4.0)])
def test_it_goes_on_where_it_was_interrupted(name: str, scale: float) -> None:
    settings = {"rounds": 2, "gradients": 2}
    asked = bundled(name, scale)
    whole = tune(asked, 4, **settings)
    assert tune(bundled(name, scale), 4, **settings) == whole
    for after in (1, 2, 3):
        again = bundled(name, scale)
        notes = Kept(again, after)
        with pytest.raises(InterruptError):
            tune(again, 4, notes, **settings)
        again.denoiser.passed += 12345  # what was spent after the last note is not counted
        assert tune(again, 4, notes, **settings) == whole
        assert again.cost == asked.cost


def test_the_solver_samples_what_was_found(tmp_path: Path) -> None:
    asked = problem()
    found = tune(asked, 4)
    learned = Learned(
        "fitted", "mixture", "0" * 64, VP, 4, 1.0, found.base, found.objective, 7, {}, asked.cost, found.curve,
        found.values,
    )  # fmt: skip
    for name, data in learned.to_files().items():
        (tmp_path / name).write_bytes(data)
    plan = solvers.plan("fitted", VP, 4, tuned=str(tmp_path))
    assert isinstance(plan, solvers.Plan)
    assert plan.instructions == plan_of(found).instructions
    assert plan.learned_from is not None
    assert plan.learned_from.calls == asked.cost.calls
    with pytest.raises(solvers.BudgetError, match="holds 4 calls at guidance 1, not 5"):
        solvers.plan("fitted", VP, 5, tuned=str(tmp_path))


@pytest.mark.parametrize(
    ("nfe", "settings", "says"),
    [
        (None, {}, "one budget of calls >= 1, not for None"),
        (0, {}, "one budget of calls >= 1, not for 0"),
        (5, {"samples": -1}, "samples=-1 must be at least 0"),
        (5, {"calls": 7}, "calls=7 must be at least 8"),
        (5, {"memory": 0}, "memory=0 must be at least 1"),
        (5, {"rounds": -1}, "rounds=-1 must be at least 0"),
        (5, {"gradients": -1}, "gradients=-1 must be at least 0"),
        (5, {"iterations": 3}, "no option 'iterations'"),
    ],
)
def test_what_it_cannot_take_is_refused(nfe: int | None, settings: dict[str, solvers.Option], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        tune(problem(), nfe, **settings)


def test_a_metric_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot search for frechet_exact"):
        tune(problem(metric=("frechet_exact", lambda x: 0.0)))
