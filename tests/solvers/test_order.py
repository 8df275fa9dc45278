"""Convergence: the error against the exact solution falls with the step at the order that each method claims."""

from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from torch import Tensor

import solvers
from solvers.grid import make_grid
from solvers.schedule import Schedule
from tests.solvers.common import SCHEDULES, denoiser, start

STEPS = (20, 40, 80, 160)
CASES = [
    pytest.param(solvers.VPLinear(), "logsnr", 1e-2, id="VPLinear-logsnr"),
    pytest.param(solvers.EDM(), "karras", 2e-3, id="EDM-karras"),
]
SOLVERS = pytest.mark.parametrize("name", solvers.names())


@cache
def solution(schedule: Schedule, t_end: float) -> NDArray[np.float64]:
    """Where the mixture's ODE, dy/dlog u = u eps with y = x/alpha and u = sigma/alpha, takes four starts; DOP853."""
    x_T, network = start(schedule, 4), denoiser(schedule)

    def slope(log_u: float, y: NDArray[np.float64]) -> NDArray[np.float64]:
        t = float(schedule.t_of_lam(-log_u))
        x = float(schedule.alpha(t)) * torch.from_numpy(y.reshape(4, 4))
        return np.exp(log_u) * network(x, t).numpy().ravel()

    span = -float(schedule.lam(schedule.t_max)), -float(schedule.lam(t_end))
    y_T = (x_T / float(schedule.alpha(schedule.t_max))).numpy().ravel()
    y = solve_ivp(slope, span, y_T, "DOP853", rtol=1e-11, atol=1e-11).y[:, -1]
    return np.asarray(y.reshape(4, 4) * schedule.alpha(t_end))


def plan_on(name: str, schedule: Schedule, grid: str, steps: int, t_end: float) -> solvers.Plan:
    """The method with nothing special about its last step, on a grid of `steps` steps."""
    options = {"lower_order_final": "never"} if "lower_order_final" in solvers.method(name).defaults else {}
    return solvers.plan(name, schedule, times=make_grid(grid, schedule, steps, t_end=t_end).times, **options)


def slope_of(errors: list[float]) -> float:
    return float(np.polyfit(np.log(STEPS), -np.log(errors), 1)[0])


@SOLVERS
@pytest.mark.parametrize(("schedule", "grid", "t_end"), CASES)
def test_the_error_on_the_mixture_falls_at_the_methods_order(
    name: str, schedule: Schedule, grid: str, t_end: float
) -> None:
    errors = []
    for steps in STEPS:
        plan = plan_on(name, schedule, grid, steps, t_end)
        x = solvers.sample(plan, denoiser(schedule), start(schedule, 4)).numpy()
        errors.append(float(np.sqrt(np.mean((x - solution(schedule, t_end)) ** 2))))
    assert slope_of(errors) == pytest.approx(solvers.method(name).order, abs=0.2), errors
    assert errors[-1] < 0.01


def gaussian(schedule: Schedule, mean: float, std: float) -> solvers.Denoiser:
    """The exact denoiser of one Gaussian: linear in x."""

    def noise(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = float(schedule.alpha(float(t[0]))), float(schedule.sigma(float(t[0])))
        return sigma * (x - alpha * mean) / (alpha**2 * std**2 + sigma**2)

    return solvers.Denoiser(noise, schedule)


def moved(schedule: Schedule, mean: float, std: float, x: Tensor, t: float, t_end: float) -> Tensor:
    """The exact solution from x at t: the number of standard deviations from the mean stays."""
    (a, b), (s, r) = schedule.alpha([t, t_end]), schedule.sigma([t, t_end])
    return b * mean + (x - a * mean) * float(np.sqrt((b**2 * std**2 + r**2) / (a**2 * std**2 + s**2)))


@SOLVERS
@pytest.mark.parametrize(("schedule", "grid", "t_end"), CASES)
def test_the_error_on_one_gaussian_falls_at_the_methods_order(
    name: str, schedule: Schedule, grid: str, t_end: float
) -> None:
    x_T = start(schedule, 4)
    exact = moved(schedule, 0.7, 0.3, x_T, schedule.t_max, t_end)
    plans = [plan_on(name, schedule, grid, steps, t_end) for steps in STEPS]
    errors = [float((solvers.sample(p, gaussian(schedule, 0.7, 0.3), x_T) - exact).norm()) for p in plans]
    assert slope_of(errors) == pytest.approx(solvers.method(name).order, abs=0.2), errors


@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp_2m"])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 7, 12])
def test_a_single_point_is_solved_exactly_in_any_number_of_steps(name: str, schedule: Schedule, steps: int) -> None:
    t, t_end = 0.9 * schedule.t_max, 0.1 * schedule.t_max
    x_T = start(schedule, 3)
    plan = solvers.plan(name, schedule, times=np.linspace(t, t_end, steps + 1).tolist())
    exact = moved(schedule, 0.7, 0.0, x_T, t, t_end)
    x = solvers.sample(plan, gaussian(schedule, 0.7, 0.0), x_T)
    torch.testing.assert_close(x, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp_2m"])
def test_the_last_step_onto_the_data_lands_on_the_data_prediction(name: str) -> None:
    network = solvers.Denoiser(lambda x, t: torch.full_like(x, 0.7), solvers.EDM(), "data")
    x = solvers.sample(solvers.plan(name, solvers.EDM(), times=[80, 5, 0.5, 0]), network, start(solvers.EDM(), 3))
    torch.testing.assert_close(x, torch.full_like(x, 0.7), rtol=0, atol=1e-12)


def test_ancestral_ddim_samples_one_gaussian_with_its_mean_and_spread() -> None:
    schedule, plan = solvers.VPLinear(), solvers.plan("ddim", solvers.VPLinear(), 100, grid="logsnr", eta=1.0)
    g = torch.Generator().manual_seed(0)
    z = torch.randn(101, 20_000, 1, generator=g, dtype=torch.float64)
    x = solvers.sample(plan, gaussian(schedule, 0.7, 0.3), z[-1], noise=lambda k: z[k])
    assert x.mean().item() == pytest.approx(0.7, abs=0.02)
    assert x.std().item() == pytest.approx(0.3, abs=0.02)
