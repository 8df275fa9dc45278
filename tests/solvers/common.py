"""What the tests of the solvers package share: every schedule, budgets that exist, and a small exact network."""

from functools import cache

import pytest
import torch
from torch import Tensor

import solvers
from bench.checkpoints.gmm import GaussianMixture, OnSchedule
from solvers.schedule import Schedule
from solvers.testing import first_time
from solvers.tracer import Method

METHODS = [(name, method) for name in solvers.names() if isinstance(method := solvers.method(name), Method)]
NAMES = [name for name, method in METHODS if not method.learns]
PLANNED = pytest.mark.parametrize("name", NAMES)  # the solvers that make plans as they are: not adaptive, not to tune

SCHEDULES: dict[str, Schedule] = {
    "VPLinear": solvers.VPLinear(),
    "VPCosine": solvers.VPCosine(),
    "VPDiscrete.linear": solvers.VPDiscrete.linear(),
    "VPDiscrete.scaled_linear": solvers.VPDiscrete.scaled_linear(),
    "EDM": solvers.EDM(),
    "RectifiedFlow": solvers.RectifiedFlow(),
}


def plan_of(name: str, schedule: Schedule, nfe: int) -> solvers.Plan | None:
    """The plan of `nfe` calls on the authors' grid, or None when the method cannot spend that budget."""
    try:
        return solvers.plan(name, schedule, nfe, t_start=first_time(schedule))
    except solvers.BudgetError:
        return None


def some_plan(name: str, schedule: Schedule, nfe: int = 9) -> solvers.Plan:
    """The plan of the first budget from `nfe` on that the method can spend."""
    return next(plan for n in range(nfe, nfe + 20) if (plan := plan_of(name, schedule, n)))


@cache
def mixture() -> GaussianMixture:
    """Three Gaussians in four dimensions."""
    return GaussianMixture.random(0, k=3, shape=(4,))


def denoiser(schedule: Schedule) -> solvers.Denoiser:
    """The mixture's exact denoiser, in float64."""
    return solvers.Denoiser(OnSchedule(mixture(), schedule), schedule)


def start(schedule: Schedule, batch: int, seed: int = 0) -> Tensor:
    """Noise to sample from on the mixture, (batch, 4), float64."""
    g = torch.Generator().manual_seed(seed)
    return schedule.prior_std(schedule.t_max) * torch.randn(batch, 4, generator=g, dtype=torch.float64)


def draws(plan: solvers.Plan, batch: int, seed: int = 1) -> Tensor:
    """One standard normal tensor for each draw of the plan, (draws, batch, 4), float64."""
    return torch.randn(plan.draws, batch, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
