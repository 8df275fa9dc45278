"""Rectified flow's Euler and Heun: straight lines on every schedule."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import solvers
from solvers.schedule import Schedule
from tests.solvers.common import SCHEDULES, denoiser, first_time, start

EVERY = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
FLOW = solvers.RectifiedFlow()


def times_of(schedule: Schedule, end: float) -> list[float]:
    return [first_time(schedule) * s for s in (1, 0.7, 0.4, 0.2, end)]


@EVERY
@pytest.mark.parametrize("end", [0.05, 0])
def test_euler_is_ddim(schedule: Schedule, end: float) -> None:
    ddim, euler = (
        solvers.sample(
            solvers.plan(name, schedule, times=times_of(schedule, end)), denoiser(schedule), start(schedule, 3)
        )
        for name in ("ddim", "flow_euler")
    )
    torch.testing.assert_close(euler, ddim, rtol=0, atol=1e-11)


@EVERY
@pytest.mark.parametrize("end", [0.05, 0])
def test_heun_is_the_trapezoid_rule_on_the_straightened_path(schedule: Schedule, end: float) -> None:
    """Written out on z and s, with Euler's step onto the data."""
    times, network, x_T = times_of(schedule, end), denoiser(schedule), start(schedule, 3)
    plan = solvers.plan("flow_heun", schedule, times=times)
    found = solvers.sample(plan, network, x_T)
    assert plan.nfe == 2 * (len(times) - 1) - (end == 0)
    levels = np.array([(float(schedule.alpha(t)), float(schedule.sigma(t))) for t in times])
    scale, z = levels.sum(1), x_T / levels[0].sum()

    def v(z: torch.Tensor, i: int) -> torch.Tensor:
        return network(scale[i] * z, times[i], "velocity")

    for i in range(len(times) - 1):
        ds = levels[i + 1, 1] / scale[i + 1] - levels[i, 1] / scale[i]
        slope = v(z, i)
        if times[i + 1] > 0:
            slope = (slope + v(z + ds * slope, i + 1)) / 2
        z = z + ds * slope
    torch.testing.assert_close(found, scale[-1] * z, rtol=0, atol=1e-11)


@given(times=st.lists(st.floats(0.01, 0.99), min_size=0, max_size=6, unique=True), data=st.floats(-3, 3))
@pytest.mark.parametrize("name", ["flow_euler", "flow_heun"])
def test_a_straight_flow_is_followed_exactly_in_any_steps(name: str, times: list[float], data: float) -> None:
    x_T = start(FLOW, 2)
    network = solvers.Denoiser(lambda x, t: x_T - data, FLOW, "velocity")
    plan = solvers.plan(name, FLOW, times=[1.0, *sorted(times, reverse=True), 0.0])
    x = solvers.sample(plan, network, x_T)
    torch.testing.assert_close(x, torch.full_like(x, data), rtol=0, atol=1e-12)


def test_a_velocity_network_is_used_as_it_is() -> None:
    """Nothing is converted: no pass over memory but the steps' own, of two and three terms."""
    for name, terms in (("flow_euler", [2] * 3), ("flow_heun", [2, 3, 2, 3, 2])):
        plan = solvers.plan(name, FLOW, times=[1.0, 0.5, 0.2, 0.0])
        assert plan.predicts == "velocity"
        assert [len(i.terms) for i in plan.instructions if hasattr(i, "terms")] == terms
        assert plan.buffers <= plan.order + 1


@pytest.mark.parametrize("name", ["flow_euler", "flow_heun"])
def test_the_grid_is_the_models_shifted_one_onto_the_data(name: str) -> None:
    plan = solvers.plan(name, solvers.RectifiedFlow(shift=3.0), 5)
    steps = 5 if name == "flow_euler" else 3
    s = np.linspace(1, 0, steps + 1)
    assert plan.times == pytest.approx((3 * s / (1 + 2 * s)).tolist(), abs=1e-15)
