"""Grids: every one falls between its ends, has the points its authors gave, and refuses what it cannot be."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import solvers
from solvers.grid import GRIDS, Grid, explicit, make_grid
from solvers.schedule import Schedule
from tests.solvers.common import SCHEDULES, first_time

DISCRETE = ("leading", "linspace", "trailing")
ONLY_ON = dict.fromkeys(DISCRETE, solvers.VPDiscrete) | {"shifted": solvers.RectifiedFlow}
ONTO_DATA = ("edm", "trailing", "shifted")
CASES = [
    pytest.param(grid, schedule, id=f"{grid}-{name}")
    for grid in GRIDS
    for name, schedule in SCHEDULES.items()
    if isinstance(schedule, ONLY_ON.get(grid, Schedule))
]


def ends(grid: str, schedule: Schedule, N: int) -> tuple[float, float]:
    if grid == "leading":  # labels (N - 1) k, ..., 0 with k = 1000 // N, then the data
        return ((N - 1) * (1000 // N) + 1) / 1000, 0.0
    return first_time(schedule), 0.0 if grid in ONTO_DATA else schedule.t_end


@pytest.mark.parametrize(("grid", "schedule"), CASES)
def test_falls_strictly_between_the_right_ends(grid: str, schedule: Schedule) -> None:
    for N in range(1, 51):
        made = make_grid(grid, schedule, N, first_time(schedule))
        assert made.steps == N == len(made.times) - 1
        assert (np.diff(made.times) < 0).all()
        assert (made.times[0], made.times[-1]) == pytest.approx(ends(grid, schedule, N), rel=1e-14, abs=0)


@pytest.mark.parametrize(("grid", "schedule"), [c for c in CASES if c.values[0] not in (*DISCRETE, "quadratic")])
@given(u=st.floats(0.3, 1), v=st.floats(0.01, 0.2), N=st.integers(1, 50))
def test_asked_ends_are_kept_to_the_bit(grid: str, schedule: Schedule, u: float, v: float, N: int) -> None:
    t_start, t_end = u * first_time(schedule), v * first_time(schedule)
    times = make_grid(grid, schedule, N, t_start, t_end).times
    assert times[0] == t_start
    assert times[-1] == (0 if grid in ONTO_DATA else t_end)
    assert grid != "edm" or N == 1 or times[-2] == t_end


@pytest.mark.parametrize("schedule", [solvers.VPLinear(), solvers.VPDiscrete.linear(), solvers.EDM()], ids=type)
def test_quadratic_keeps_its_ends_to_the_bit(schedule: Schedule) -> None:
    times = make_grid("quadratic", schedule, 10).times
    assert (times[0], times[-1]) == (schedule.t_max, schedule.t_end)


@pytest.mark.parametrize("N", [2, 3, 18, 50])
def test_edm_is_the_closed_formula_of_table_1(N: int) -> None:
    i = np.arange(N)
    sigma = (80 ** (1 / 7) + i / (N - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(make_grid("edm", solvers.EDM(), N).times, [*sigma, 0.0], rtol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_karras_is_uniform_in_the_seventh_root_of_the_noise(schedule: Schedule) -> None:
    grid = make_grid("karras", schedule, 12, first_time(schedule))
    steps = np.diff((grid.sigma / grid.alpha) ** (1 / 7))
    np.testing.assert_allclose(steps, steps.mean(), rtol=1e-7)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_logsnr_is_uniform_in_lambda(schedule: Schedule) -> None:
    steps = np.diff(make_grid("logsnr", schedule, 17, first_time(schedule)).lam)
    np.testing.assert_allclose(steps, steps.mean(), rtol=1e-7)


def test_uniform_and_quadratic_are_uniform_in_time_and_its_root() -> None:
    uniform, quadratic = (make_grid(name, solvers.VPLinear(), 9).times for name in ("uniform", "quadratic"))
    np.testing.assert_allclose(np.diff(uniform), -0.999 / 9, rtol=1e-12)
    np.testing.assert_allclose(np.diff(np.sqrt(quadratic)), -(1 - 1e-3**0.5) / 9, rtol=1e-12)


@pytest.mark.parametrize(
    ("grid", "N", "labels"),
    [
        ("leading", 4, [750, 500, 250, 0, -1]),
        ("trailing", 4, [999, 749, 499, 249, -1]),
        ("trailing", 3, [999, 666, 332, -1]),
        ("linspace", 3, [999, 666, 333, 0]),
        ("linspace", 4, [999, 749, 500, 250, 0]),
    ],
)
def test_discrete_grids_hold_the_published_labels(grid: str, N: int, labels: list[int]) -> None:
    times = make_grid(grid, solvers.VPDiscrete.linear(), N).times
    np.testing.assert_allclose(times, (np.array(labels) + 1) / 1000, rtol=1e-12)


@pytest.mark.parametrize("grid", DISCRETE)
@pytest.mark.parametrize("schedule", [solvers.VPLinear(), solvers.EDM()], ids=repr)
def test_discrete_grids_need_a_discrete_schedule(grid: str, schedule: Schedule) -> None:
    with pytest.raises(ValueError, match=f"VPDiscrete schedule, not {type(schedule).__name__}"):
        make_grid(grid, schedule, 5)


def test_levels_are_the_schedules() -> None:
    grid = explicit(solvers.VPCosine(), [0.9, 0.5, 0.0])
    assert grid.alpha.tolist() == solvers.VPCosine().alpha([0.9, 0.5, 0.0]).tolist()
    assert grid.sigma.tolist() == solvers.VPCosine().sigma([0.9, 0.5, 0.0]).tolist()
    assert grid.lam[-1] == np.inf


@pytest.mark.parametrize("grid", ["uniform", "logsnr", "edm"])
@pytest.mark.parametrize(
    ("t_start", "t_end"), [(1.1, None), (0.5, 0.5), (0.5, 0.6), (1.0, 0.0), (1.0, -0.1), (float("nan"), None)]
)
def test_ends_outside_the_schedule_are_refused(grid: str, t_start: float, t_end: float | None) -> None:
    with pytest.raises(ValueError, match=r"must lie between|lies beyond"):
        make_grid(grid, solvers.VPLinear(), 5, t_start, t_end)


@pytest.mark.parametrize("times", [[], [0.5], [0.5, 0.5], [0.2, 0.4], [0.5, -0.1], [0.5, float("nan")]])
def test_times_that_do_not_fall_are_refused(times: list[float]) -> None:
    with pytest.raises(ValueError, match="strictly decreasing"):
        explicit(solvers.VPLinear(), times)


def test_a_time_beyond_the_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="beyond the schedule's last"):
        Grid(solvers.VPCosine(), (1.0, 0.5))


@pytest.mark.parametrize("grid", ["logsnr", "karras", "edm"])
def test_grids_in_lambda_refuse_to_start_where_no_signal_is_left(grid: str) -> None:
    with pytest.raises(ValueError, match=r"finite lambda, and at t_start = 1\.0 it is -inf: start later"):
        make_grid(grid, solvers.RectifiedFlow(), 5)


def test_an_unknown_grid_says_what_was_meant() -> None:
    with pytest.raises(solvers.UnknownNameError, match=r"unknown grid 'karas': did you mean 'karras'\?"):
        make_grid("karas", solvers.EDM(), 5)
