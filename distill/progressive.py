"""Progressive distillation: students of half as many steps each.  Salimans & Ho 2022, arXiv 2202.00512.

A student of N steps learns to land in one DDIM step where its teacher lands in two, and is the next teacher.  In the
paper's alpha_t, sigma_t, from t over t' to t'' on the grid of 2N steps (Algorithm 2, Eq. (8), Appendix G):
    z'' = two steps of the teacher from z,  x~ = (z'' - (sigma''/sigma) z)/(alpha'' - (sigma''/sigma) alpha)
    L = max(alpha^2/sigma^2, 1) ||x~ - D(z, t)||^2
"""

from dataclasses import dataclass
from math import log2
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from distill.batch import LOSS, Batch
from distill.method import Method, Players, Teacher
from distill.steps import chord, intervals, l2, noised, times, usual_grid, weighted
from distill.student import FewStep
from distill.trainer import Recipe
from solvers.schedule import Schedule
from solvers.stacked import Stacked


@dataclass(frozen=True)
class Progressive(Method):
    """Students of start, start/2, ..., end steps, in equal parts of the training.

    The teacher one begins with is a network for all times, so that its two steps may be of any registered solver, in
    `calls` calls each; a student is one for its own times alone, between which DDIM is what it has learned.
    """

    recipe: ClassVar[Recipe] = Recipe(steps=10_000, batch=128, lr=5e-4, warmup=100)

    start: int = 8
    end: int = 1
    solver: str = "flow_heun"
    calls: int = 2

    def check(self, teacher: Teacher) -> None:
        for name, steps in (("start", self.start), ("end", self.end)):
            if steps < 1 or steps & (steps - 1):
                raise ValueError(f"progressive: {name} = {steps} is not a power of two, as steps that halve are")
        if self.end > self.start:
            raise ValueError(f"progressive: end = {self.end} steps are more than start = {self.start}")
        self._halves(teacher.schedule, 0)

    @property
    def stages(self) -> int:
        return int(log2(self.start // self.end)) + 1

    def sampler(self, schedule: Schedule, progress: float = 1.0) -> FewStep:
        return FewStep("ddim", grid=usual_grid(schedule), budgets=(self.start >> self._stage(progress),))

    def _stage(self, progress: float) -> int:
        return min(self.stages - 1, int(progress * self.stages + 1e-9))  # 1/49 * 49 < 1

    def _halves(self, schedule: Schedule, stage: int) -> Stacked:
        """The teacher's steps on its grid, twice as many as the student's."""
        solver, calls = ("ddim", 1) if stage else (self.solver, self.calls)
        return intervals(schedule, tuple(times(schedule, 2 * self.start >> stage).tolist()), solver, calls)

    def loss(self, players: Players, turn: str, batch: Batch) -> Tensor:
        schedule, teacher = players.teacher.schedule, players.teacher.denoiser
        stage = self._stage(players.progress)
        N = self.start >> stage
        grid, halves = times(schedule, N), self._halves(schedule, stage)
        n = batch.draws.integers(LOSS, N)
        t, t_next = grid[n + 1], grid[n]
        z = noised(schedule, batch.x0, batch.noise(LOSS + 1), t)
        with torch.no_grad():
            z_next = z
            for half in (2 * n + 1, 2 * n):
                z_next = halves.run(half, lambda x, t: teacher.at_each(x, t, halves.predicts, batch.cond), z_next)
        D = players.student.at_each(z, t, "data", batch.cond)
        snr = (schedule.alpha(t) / schedule.sigma(t)) ** 2
        return weighted(np.maximum(snr, 1.0), l2(D, chord(schedule, z, z_next, t, t_next)))
