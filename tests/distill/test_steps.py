"""What losses are made of, against solvers' own plans, the exact flow of a Gaussian, and closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import solvers
from distill.steps import chord, consistency, intervals, jump, l2, noised, pseudo_huber, times, usual_grid, weighted
from solvers.grid import make_grid
from solvers.schedule import Schedule
from tests.distill.toys import S0, exact_map, gaussian_teacher

VPS = [solvers.VPLinear(), solvers.VPCosine(), solvers.VPDiscrete.linear()]
SCHEDULES = [solvers.EDM(), *VPS, solvers.RectifiedFlow()]
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
fraction = st.floats(1e-3, 0.999)


def pair(shape: tuple[int, ...] = (6, 2), seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64), torch.randn(shape, generator=g, dtype=torch.float64)


def between(schedule: Schedule, fractions: list[float]) -> np.ndarray:
    """Times at these fractions of the way from the schedule's end to its last, (B,)."""
    return schedule.t_end + np.array(fractions) * (schedule.t_max - schedule.t_end)


@each_schedule
def test_times_are_the_usual_grid_rising(schedule: Schedule) -> None:
    ts = times(schedule, 12)
    assert usual_grid(schedule) == ("uniform" if isinstance(schedule, solvers.RectifiedFlow) else "karras")
    assert (ts[0], ts[-1], len(ts)) == (schedule.t_end, schedule.t_max, 13)
    assert (np.diff(ts) > 0).all()
    assert ts[::-1].tolist() == list(make_grid(usual_grid(schedule), schedule, 12).times)
    assert times(schedule, 5, "uniform").tolist() == pytest.approx(np.linspace(schedule.t_end, schedule.t_max, 6))


@each_schedule
def test_every_second_time_of_twice_as_many_is_a_time(schedule: Schedule) -> None:
    np.testing.assert_allclose(times(schedule, 16)[::2], times(schedule, 8), rtol=1e-9)


@each_schedule
def test_noised_has_the_schedules_levels_for_each_sample(schedule: Schedule) -> None:
    x0, eps = pair((4, 1, 3, 3))
    t = between(schedule, [0.1, 0.9, 0.5, 1.0])
    for i, at in enumerate(t):
        expected = float(schedule.alpha(at)) * x0[i] + float(schedule.sigma(at)) * eps[i]
        torch.testing.assert_close(noised(schedule, x0, eps, t)[i], expected, rtol=1e-14, atol=1e-14)


@each_schedule
@given(start=fraction, part=st.floats(0, 1), seed=st.integers(0, 99))
def test_a_jump_is_one_step_of_ddim(schedule: Schedule, start: float, part: float, seed: int) -> None:
    x, D = pair(seed=seed)
    t = float(between(schedule, [start])[0])
    s = schedule.t_end + part * (t - schedule.t_end) * (1 - 1e-6)
    plan = solvers.plan("ddim", schedule, times=[t, s])
    expected = solvers.sample(plan, solvers.Denoiser(lambda x, t: D, schedule, "data"), x)
    torch.testing.assert_close(jump(schedule, x, D, np.full(6, t), np.full(6, s)), expected, rtol=1e-9, atol=1e-9)


@each_schedule
@given(fractions=st.lists(fraction, min_size=6, max_size=6), part=st.floats(0.01, 0.99), seed=st.integers(0, 99))
def test_jumps_along_one_prediction_lie_on_one_line(
    schedule: Schedule, fractions: list[float], part: float, seed: int
) -> None:
    x0, eps = pair(seed=seed)
    t = between(schedule, fractions)
    s = schedule.t_end + part * (t - schedule.t_end)
    x = noised(schedule, x0, eps, t)
    torch.testing.assert_close(jump(schedule, x, x0, t, s), noised(schedule, x0, eps, s), rtol=1e-7, atol=1e-7)
    once = jump(schedule, x, eps, t, np.full(6, schedule.t_end))
    twice = jump(schedule, jump(schedule, x, eps, t, s), eps, s, np.full(6, schedule.t_end))
    torch.testing.assert_close(once, twice, rtol=1e-7, atol=1e-7)


@each_schedule
@given(fractions=st.lists(fraction, min_size=6, max_size=6), seed=st.integers(0, 99))
def test_a_jump_to_where_one_is_stays_there(schedule: Schedule, fractions: list[float], seed: int) -> None:
    x, D = pair(seed=seed)
    t = between(schedule, fractions)
    assert torch.equal(jump(schedule, x, D, t, t), x)


@each_schedule
def test_a_consistency_function_is_the_identity_at_the_end_whatever_the_prediction(schedule: Schedule) -> None:
    x, D = pair()
    t = np.full(6, schedule.t_end)
    assert torch.equal(consistency(schedule, x, D, t), x)
    assert torch.equal(consistency(schedule, x, 1e6 * D, t), x)
    assert not torch.isclose(consistency(schedule, x, D, between(schedule, [0.5] * 6)), x).any()


@each_schedule
@given(fractions=st.lists(fraction, min_size=6, max_size=6), part=st.floats(0, 0.9), seed=st.integers(0, 99))
def test_a_chord_is_the_prediction_that_jumps_there(
    schedule: Schedule, fractions: list[float], part: float, seed: int
) -> None:
    x, y = pair(seed=seed)
    t = between(schedule, fractions)
    s = schedule.t_end + part * (t - schedule.t_end)
    torch.testing.assert_close(jump(schedule, x, chord(schedule, x, y, t, s), t, s), y, rtol=1e-6, atol=1e-6)


def error_of_steps(schedule: Schedule, solver: str, calls: int, points: int) -> float:
    """Of the teacher's step over every interval at once, from the exact flow's states, over the way that it goes."""
    rising, teacher = times(schedule, points), gaussian_teacher(schedule).denoiser
    step = intervals(schedule, tuple(rising.tolist()), solver, calls)
    assert step.calls == calls
    z = float(schedule.sigma(schedule.t_max)) * torch.tensor([0.7, -1.2], dtype=torch.float64)
    flow = torch.stack([exact_map(z, schedule.t_max, t, schedule) for t in rising])
    out = step.run(np.arange(points), lambda x, t: teacher.at_each(x, t, step.predicts), flow[1:])
    return float((out - flow[:-1]).norm() / (flow[1:] - flow[:-1]).norm())


@pytest.mark.parametrize("schedule", [solvers.EDM(), *VPS], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(("solver", "calls", "order"), [("heun", 2, 2), ("dpm_solver_2", 2, 2), ("ddim", 1, 1)])
def test_teachers_steps_follow_the_exact_flow_to_the_order_of_the_solver(
    schedule: Schedule, solver: str, calls: int, order: int
) -> None:
    coarse, fine = (error_of_steps(schedule, solver, calls, points) for points in (60, 120))
    assert coarse < 0.15
    assert fine < coarse / 1.7**order


def test_teachers_steps_over_several_intervals_stop_at_the_end() -> None:
    edm, rising = solvers.EDM(), tuple(times(solvers.EDM(), 6).tolist())
    step, seen = intervals(edm, rising, "ddim", 1, skip=4), []
    x = torch.zeros(2, 1, dtype=torch.float64)
    out = step.run(np.array([1, 5]), lambda x, t: (seen.extend(t), x + 1)[1], x)
    assert seen == [rising[2], rising[6]]
    torch.testing.assert_close(out[:, 0].numpy(), 1 - np.array([rising[0] / rising[2], rising[2] / rising[6]]))


@pytest.mark.parametrize(
    ("solver", "calls", "message"),
    [
        ("heun", 3, "3"),
        ("euler_ancestral", 1, "draws noise"),
        ("dpm_solver_12", 6, "dpm_solver_12"),
        ("hein", 2, "did you mean 'heun'"),
    ],
)
def test_a_solver_that_cannot_step_is_refused(solver: str, calls: int, message: str) -> None:
    with pytest.raises((ValueError, solvers.UnknownNameError), match=message):
        intervals(solvers.EDM(), tuple(times(solvers.EDM(), 4).tolist()), solver, calls)


def test_distances_are_of_each_sample() -> None:
    a = torch.tensor([[[3.0, 0.0]], [[0.0, 0.0]], [[1.0, 1.0]]])
    b = torch.tensor([[[0.0, 4.0]], [[0.0, 0.0]], [[1.0, 0.0]]])
    torch.testing.assert_close(l2(a, b), torch.tensor([12.5, 0.0, 0.5]))
    torch.testing.assert_close(pseudo_huber(12.0)(a, b), torch.tensor([1.0, 0.0, 145**0.5 - 12]))
    torch.testing.assert_close(weighted([2.0, 5.0, 4.0], l2(a, b)), torch.tensor((25.0 + 2.0) / 3))


@given(c=st.floats(1e-4, 10), size=st.floats(1e-3, 1e3))
def test_pseudo_huber_lies_below_the_distance_and_below_its_square(c: float, size: float) -> None:
    a = size * S0.double()[None]
    d, r = float(pseudo_huber(c)(a, torch.zeros_like(a))), float(a.norm())
    assert max(0.0, r - c) <= d * (1 + 1e-9) + 1e-12
    assert d <= min(r, r**2 / (2 * c)) * (1 + 1e-9) + 1e-12


def test_a_distance_has_a_gradient_where_both_are_equal() -> None:
    a = torch.ones(2, 3, requires_grad=True)
    pseudo_huber(0.01)(a, torch.ones(2, 3)).sum().backward()
    assert torch.equal(a.grad, torch.zeros(2, 3))
