"""Exact solutions: what solvers do on one Gaussian and one point, whose trajectories are known in closed form."""

import numpy as np
import pytest
import torch
from torch import Tensor

import solvers
from solvers.schedule import Schedule
from tests.solvers.common import PLANNED, SCHEDULES, start


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


@PLANNED
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 7, 12])
def test_a_single_point_is_solved_exactly_in_any_number_of_steps(name: str, schedule: Schedule, steps: int) -> None:
    t, t_end = 0.9 * schedule.t_max, 0.1 * schedule.t_max
    x_T = start(schedule, 3)
    plan = solvers.plan(name, schedule, times=np.linspace(t, t_end, steps + 1).tolist())
    if plan.draws:
        return  # its noise stays
    exact = moved(schedule, 0.7, 0.0, x_T, t, t_end)
    x = solvers.sample(plan, gaussian(schedule, 0.7, 0.0), x_T)
    torch.testing.assert_close(x, exact, rtol=1e-9, atol=1e-9)


@PLANNED
def test_the_last_step_onto_the_data_lands_on_the_data_prediction(name: str) -> None:
    network = solvers.Denoiser(lambda x, t: torch.full_like(x, 0.7), solvers.EDM(), "data")
    plan, x_T = solvers.plan(name, solvers.EDM(), times=[80, 5, 0.5, 0]), start(solvers.EDM(), 3)
    x = solvers.sample(plan, network, x_T, lambda k: torch.ones_like(x_T))
    torch.testing.assert_close(x, torch.full_like(x, 0.7), rtol=0, atol=1e-12)


def test_ancestral_ddim_samples_one_gaussian_with_its_mean_and_spread() -> None:
    schedule, plan = solvers.VPLinear(), solvers.plan("ddim", solvers.VPLinear(), 100, grid="logsnr", eta=1.0)
    g = torch.Generator().manual_seed(0)
    z = torch.randn(101, 20_000, 1, generator=g, dtype=torch.float64)
    x = solvers.sample(plan, gaussian(schedule, 0.7, 0.3), z[-1], noise=lambda k: z[k])
    assert x.mean().item() == pytest.approx(0.7, abs=0.02)
    assert x.std().item() == pytest.approx(0.3, abs=0.02)
