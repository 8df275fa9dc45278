"""TSCD: consistency along the teacher's trajectory within segments, of which there are ever fewer.

Ren et al. 2024, "Hyper-SD: Trajectory Segmented Consistency Model for Efficient Image Synthesis", arXiv 2404.13686,
Section 3.1.  Its soft target, an end anywhere on the way, is that of Kim et al. 2023, "Consistency Trajectory Models",
arXiv 2310.02279, whose networks are told the end.  Ours are not, as Hyper-SD's are not.
"""

from dataclasses import dataclass
from math import floor
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from distill.batch import LOSS, Batch
from distill.method import Method, Players, Teacher
from distill.steps import intervals, jump, l2, noised, pseudo_huber, times, usual_grid
from distill.student import FewStep
from distill.trainer import Recipe
from solvers.schedule import Schedule

INTERVAL, NOISE, END = range(LOSS, LOSS + 3)  # streams


@dataclass(frozen=True)
class TSCD(Method):
    """Jumps from t_n and from a teacher's step later agree on where they land in their segment of `points` intervals.

    There are `segments` of them at first, then half as many, and one in the second half of the training.  `ends` says
    where jumps land: at the segment's "edge", or anywhere from there to t_{n-1}, "uniform", as in the paper.  A network
    that is not told the end predicts one line, which is exact for one end: "uniform" is a compromise between all.
    `guidance` is the teacher's scale, `eta` how far beyond the next time the sampler jumps (see solvers/tcd.py).
    """

    solver: str = "heun"
    calls: int = 2
    points: int = 32
    segments: int = 8
    ends: str = "edge"
    distance: str = "huber"
    c: float = 0.03  # of pseudo-Huber
    guidance: float = 1.0
    eta: float = 1.0

    recipe: ClassVar[Recipe] = Recipe(8_000, 128, 3e-4)
    target_decay: ClassVar[float] = 0.95

    def loss(self, players: Players, turn: str, batch: Batch) -> Tensor:
        schedule, teacher = players.teacher.schedule, players.teacher.denoiser
        ts = times(schedule, self.points)
        step = intervals(schedule, tuple(ts), self.solver, self.calls)
        n = batch.draws.integers(INTERVAL, self.points)  # the interval between t_{n-1} and t_n
        length = self.points // self.segments_at(players.progress)
        b = n // length * length
        end = b if self.ends == "edge" else b + np.floor(batch.draws.uniform(END) * (n + 1 - b)).astype(int)
        t, r, s = ts[n + 1], ts[n], ts[end]
        x = noised(schedule, batch.x0, batch.noise(NOISE), t)
        with torch.no_grad():
            scales = None if self.guidance == 1 else np.full(len(t), self.guidance)
            x_hat = step.run(n, lambda y, at: teacher.at_each(y, at, step.predicts, dict(batch.cond), scales), x)
            target = jump(schedule, x_hat, players.target.at_each(x_hat, r, "data", dict(batch.cond)), r, s)
        ours = jump(schedule, x, players.student.at_each(x, t, "data", dict(batch.cond)), t, s)
        distance = pseudo_huber(self.c) if self.distance == "huber" else l2
        return distance(ours, target).mean()

    def segments_at(self, progress: float) -> int:
        """How many once so much of the training is over: one for its second half, all numbers above share the first."""
        halvings = self.segments.bit_length() - 1
        return self.segments >> min(halvings, floor(2 * progress * halvings))

    def check(self, teacher: Teacher) -> None:
        if self.segments < 1 or self.segments & (self.segments - 1):
            raise ValueError(f"tscd: segments = {self.segments} must be a power of two: they are halved down to one")
        if self.points < 1 or self.points % self.segments:
            raise ValueError(f"tscd: points = {self.points} must be a multiple of segments = {self.segments}")
        if self.ends not in ("edge", "uniform"):
            raise ValueError(f"tscd: ends = {self.ends!r} must be edge or uniform")
        if self.distance not in ("huber", "l2"):
            raise ValueError(f"tscd: distance = {self.distance!r} must be huber or l2")
        if not self.c > 0:
            raise ValueError(f"tscd: c = {self.c:g} must be a number > 0")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"tscd: eta = {self.eta:g} must lie in [0, 1]")
        if self.guidance != 1 and teacher.denoiser.guidance is None:
            raise ValueError(f"tscd: guidance = {self.guidance:g} needs a teacher with guidance, and this has none")
        intervals(teacher.schedule, tuple(times(teacher.schedule, self.points)), self.solver, self.calls)

    def sampler(self, schedule: Schedule, progress: float = 1.0) -> FewStep:
        return FewStep("tcd", {"eta": self.eta}, grid=usual_grid(schedule), budgets=(1, 2, 4))
