"""Grids: every one falls between its ends, has the points its authors gave, and refuses what it cannot be."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import solvers
from solvers.grid import GRIDS, Grid, block_orders, explicit, make_grid
from solvers.schedule import Schedule
from tests.solvers.common import SCHEDULES, first_time

DISCRETE = ("leading", "linspace", "trailing", "lcm", "tcd")
ONLY_ON = dict.fromkeys(DISCRETE, solvers.VPDiscrete) | {"shifted": solvers.RectifiedFlow}
ONTO_DATA = ("edm", "trailing", "shifted", "lcm")
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


@pytest.mark.parametrize(
    ("k", "N", "orders"),
    [
        (2, 1, [1]),
        (2, 2, [2]),
        (2, 7, [2, 2, 2, 1]),
        (2, 8, [2, 2, 2, 2]),
        (3, 1, [1]),
        (3, 2, [2]),
        (3, 3, [2, 1]),
        (3, 4, [3, 1]),
        (3, 5, [3, 2]),
        (3, 6, [3, 2, 1]),
        (3, 10, [3, 3, 3, 1]),
        (3, 11, [3, 3, 3, 2]),
        (3, 12, [3, 3, 3, 2, 1]),
        (3, 15, [3, 3, 3, 3, 2, 1]),
    ],
)
def test_blocks_have_the_published_orders(k: int, N: int, orders: list[int]) -> None:
    """Lu et al. 2022, Section 3.3: 3, ..., 3, 2, 1 | 3, ..., 3, 1 | 3, ..., 3, 2."""
    assert block_orders(k, N) == orders


@pytest.mark.parametrize("k", [2, 3])
def test_blocks_spend_every_budget_in_as_few_updates_as_published(k: int) -> None:
    for N in range(1, 100):
        orders = block_orders(k, N)
        assert sum(orders) == N
        assert orders == sorted(orders, reverse=True)
        assert len(orders) == (N // 3 + 1 if k == 3 else (N + 1) // 2)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("k", [2, 3])
def test_blocks_are_equal_in_lambda_and_so_are_the_steps_of_each(k: int, schedule: Schedule) -> None:
    first = first_time(schedule)
    for N in range(1, 31):
        grid, orders = make_grid(f"logsnr_{k}", schedule, N, first), block_orders(k, N)
        whole = float(schedule.lam(schedule.t_end) - schedule.lam(first)) / len(orders)
        steps = [whole / order for order in orders for _ in range(order)]
        np.testing.assert_allclose(np.diff(grid.lam), steps, rtol=1e-6)
        assert (grid.times[0], grid.times[-1]) == (first, schedule.t_end)


@pytest.mark.parametrize("name", ["dpm_solver_2", "dpm_solver_3", "dpmpp_2s", "dpmpp_3s"])
def test_singlestep_solvers_step_from_block_to_block(name: str) -> None:
    for nfe in range(1, 20):
        plan = solvers.plan(name, solvers.VPLinear(), nfe)
        assert plan.times == make_grid(f"logsnr_{name.rstrip('s')[-1]}", solvers.VPLinear(), nfe).times


@pytest.mark.parametrize("N", [1, 2, 7, 28])
def test_a_shift_of_one_is_uniform(N: int) -> None:
    times = make_grid("shifted", solvers.RectifiedFlow(), N).times
    np.testing.assert_allclose(times, np.linspace(1, 0, N + 1), rtol=1e-14, atol=0)


@pytest.mark.parametrize("N", [1, 2, 7, 28])
@pytest.mark.parametrize("shift", [3.0, 0.5])
def test_a_shift_is_the_published_formula(N: int, shift: float) -> None:
    """Esser et al. 2024, Eq. (23): the signal-to-noise ratio of uniform times, divided by the shift squared."""
    grid, u = make_grid("shifted", solvers.RectifiedFlow(shift), N), np.linspace(1, 0, N + 1)
    np.testing.assert_allclose(grid.times, shift * u / (1 + (shift - 1) * u), rtol=1e-14, atol=0)
    uniform = make_grid("uniform", solvers.RectifiedFlow(), N, t_end=1e-9)
    np.testing.assert_allclose(grid.lam[1:-1], uniform.lam[1:-1] - np.log(shift), atol=1e-6)


@given(shift=st.floats(0.1, 10), t_start=st.floats(0.1, 1), N=st.integers(1, 30))
def test_a_shifted_grid_keeps_its_ends_to_the_bit_and_is_uniform_before_the_shift(
    shift: float, t_start: float, N: int
) -> None:
    times = np.array(make_grid("shifted", solvers.RectifiedFlow(shift), N, t_start).times)
    assert (times[0], times[-1]) == (t_start, 0)
    steps = np.diff(times / (shift - (shift - 1) * times))
    np.testing.assert_allclose(steps, steps.mean(), rtol=1e-9)


@pytest.mark.parametrize("shift", [0.0, -1.0, float("nan")])
def test_a_shift_that_is_not_positive_is_refused(shift: float) -> None:
    with pytest.raises(ValueError, match=f"shift must be positive, not {shift}"):
        solvers.RectifiedFlow(shift)


@pytest.mark.parametrize("schedule", [solvers.VPLinear(), solvers.EDM()], ids=repr)
def test_the_shifted_grid_is_for_rectified_flows_alone(schedule: Schedule) -> None:
    with pytest.raises(ValueError, match=f"needs a RectifiedFlow schedule, not {type(schedule).__name__}"):
        make_grid("shifted", schedule, 5)
