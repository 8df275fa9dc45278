"""What the tests of the two searches share: the mixture as a problem, notes that can be interrupted, held-out error."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

import solvers
from bench.checkpoints import Guide, Task, load
from solvers.plan import Plan
from solvers.tune.base import Problem
from solvers.tune.reference import reference

CPU = torch.device("cpu")
TINY: dict[str, solvers.Option] = {"samples": 12, "solution": 24, "screened": 40, "calls": 600}
Metric = tuple[str, Callable[[Tensor], float]]


class InterruptedSearchError(Exception):
    """The end of a process, in the middle of a search."""


class Pages:
    """Notes in memory, which keep the cost too, as those of the command do; they break off after `last` writes."""

    def __init__(self, problem: Problem, before: "Pages | None" = None, last: int = 10**9) -> None:
        self.denoiser, self.last, self.writes = problem.denoiser, last, 0
        self.kept: tuple[int, dict[str, Any]] | None = before.kept if before else None

    def read(self) -> dict[str, Any] | None:
        if self.kept is None:
            return None
        self.denoiser.passed = self.kept[0]
        return copy.deepcopy(self.kept[1])

    def write(self, state: dict[str, Any]) -> None:
        self.kept = self.denoiser.passed, copy.deepcopy(state)
        self.writes += 1
        if self.writes == self.last:
            raise InterruptedSearchError


def problem(seed: int = 12345, guidance: float = 1.0, metric: Metric | None = None) -> Problem:
    """The bundled mixture, in float32."""
    gmm = load("gmm")
    denoiser = gmm.denoiser(Task(Guide(guidance)), CPU, torch.float32)

    def start(first: int, count: int, t: float) -> tuple[Tensor, dict[str, Tensor]]:
        return gmm.latents(seed, first, count, t).float(), {"y": gmm.labels(seed, first, count)}

    return Problem(denoiser, guidance, gmm.shape, seed, start, metric)


@cache
def _held_out(guidance: float) -> tuple[Problem, Tensor, dict[str, Tensor], Tensor]:
    held_out = problem(0, guidance)
    x_T, cond = held_out.start(0, 64, 1.0)
    exact = reference(held_out.denoiser, x_T, cond, 1.0, held_out.schedule.t_end, 80)
    return held_out, x_T, dict(cond), exact.at(held_out.schedule.t_end)


def error(plan: Plan, guidance: float = 1.0) -> float:
    """The median truncation error on samples that no search saw: a few that change their mode would rule a mean."""
    held_out, x_T, cond, exact = _held_out(guidance)
    x = solvers.sample(plan, held_out.denoiser, x_T, cond=cond)
    return float((x - exact).flatten(1).pow(2).mean(1).sqrt().median())
