"""Consistency models: the student's f(x_t, t), where the trajectory through x_t ends, is drawn to f(x_r, r) at r < t.

Song et al. 2023, arXiv 2303.01469 (CD, CT); Song & Dhariwal 2023, arXiv 2310.14189 (the improved CT); Geng et al. 2024,
arXiv 2406.14548 (ECT).  f is the jump to the schedule's end along the student's data prediction, so that
f(x, t_end) = x whatever the network says.  Where the papers say t, losses say u = sigma/alpha: the noise level of
x_t/alpha_t = x_0 + u eps on any schedule, and t itself on EDM's.
"""

from dataclasses import dataclass
from math import floor, isfinite, log2, sqrt
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from scipy.special import expit, ndtr, ndtri
from torch import Tensor

from distill.batch import LOSS, Batch
from distill.method import Method, Players, Teacher
from distill.steps import consistency, intervals, l2, noised, pseudo_huber, times, usual_grid, weighted
from distill.student import FewStep
from distill.trainer import Recipe
from solvers.model import Denoiser
from solvers.schedule import Array, Schedule

NOISE, TIME = LOSS, LOSS + 1  # streams
P_MEAN, P_STD = -1.1, 2.0  # ln u ~ N(P_mean, P_std^2).  Song & Dhariwal 2023, Section 3.5


class Point(NamedTuple):
    """States x (B, *shape) at times t (B,)."""

    x: Tensor
    t: Array


class Consistency(Method):
    """What the three share: ends of trajectories that are compared, and jumps to the end with fresh noise between."""

    def sampler(self, schedule: Schedule, progress: float = 1.0) -> FewStep:
        return FewStep("tcd", {"eta": 1.0}, grid=usual_grid(schedule), budgets=(1, 2, 4))

    @staticmethod
    def ends(players: Players, batch: Batch, later: Point, earlier: Point) -> tuple[Tensor, Tensor]:
        """f(x_t, t) of the student and sg f(x_r, r) of the target, under the same dropout."""

        def f(denoiser: Denoiser, x: Tensor, t: Array) -> Tensor:
            return consistency(denoiser.schedule, x, denoiser.at_each(x, t, "data", dict(batch.cond)), t)

        with torch.no_grad(), torch.random.fork_rng([later.x.device] if later.x.is_cuda else []):
            target = f(players.target, *earlier)
        return f(players.student, *later), target


@dataclass(frozen=True)
class CD(Consistency):
    """Consistency distillation: x_r is one step of the teacher's solver away from x_t.  Song et al. 2023, Algorithm 2.

    t and r are neighbours among `points` + 1 times, between which `solver` makes `calls` network calls.  The target is
    the student itself: no average of it learns better (Song & Dhariwal 2023, Section 3.2).
    """

    solver: str = "heun"
    calls: int = 2
    points: int = 18
    distance: str = "huber"
    c: float = 0.03  # of pseudo-Huber

    recipe: ClassVar[Recipe] = Recipe(10_000, 128, 1e-3)

    def check(self, teacher: Teacher) -> None:
        _need(self.points >= 1, "points", self.points, "a whole number >= 1")
        _need(self.distance in ("huber", "l2"), "distance", self.distance, "huber or l2")
        _need(self.c > 0, "c", self.c, "a number > 0")
        intervals(teacher.schedule, tuple(times(teacher.schedule, self.points)), self.solver, self.calls)

    def loss(self, players: Players, turn: str, batch: Batch) -> Tensor:
        schedule, teacher = players.teacher.schedule, players.teacher.denoiser
        t = times(schedule, self.points)
        step = intervals(schedule, tuple(t), self.solver, self.calls)
        n = batch.draws.integers(TIME, self.points)
        x = noised(schedule, batch.x0, batch.noise(NOISE), t[n + 1])
        with torch.no_grad():
            x_hat = step.run(n, lambda y, s: teacher.at_each(y, s, step.predicts, dict(batch.cond)), x)  # Eq. (6)
        distance = pseudo_huber(self.c) if self.distance == "huber" else l2
        return distance(*self.ends(players, batch, Point(x, t[n + 1]), Point(x_hat, t[n]))).mean()  # Eq. (7)


def _shifted_noise(players: Players, batch: Batch, t: Array) -> Point:
    """The batch noised to times t, always by the same noise: along the straight line through x_0."""
    return Point(noised(players.teacher.schedule, batch.x0, batch.noise(NOISE), t), t)


def _probability(u: Array) -> Array:
    """How likely a level below u is."""
    return ndtr((np.log(u) - P_MEAN) / P_STD)


def _level(schedule: Schedule, t: Array) -> Array:
    """u(t) = sigma/alpha."""
    return np.exp(-schedule.lam(t))


@dataclass(frozen=True)
class CT(Consistency):
    """Consistency training, improved: x_r carries the noise of x_t, and no teacher is asked.  Song & Dhariwal 2023.

    t and r are neighbours among N + 1 times, where N doubles from `s0` to `s1` over the training.
    """

    s0: int = 10
    s1: int = 160
    c: float = 0.00054  # of pseudo-Huber, for each sqrt(d) of samples of d numbers

    recipe: ClassVar[Recipe] = Recipe(10_000, 128, 1e-3)

    def check(self, teacher: Teacher) -> None:
        _need(self.s0 >= 1, "s0", self.s0, "a whole number >= 1")
        _need(self.s1 >= self.s0, "s1", self.s1, f"a whole number >= s0 = {self.s0}")
        _need(self.c > 0, "c", self.c, "a number > 0")
        schedule = teacher.schedule
        if not isfinite(schedule.lam(schedule.t_max)):
            raise ValueError(
                f"ct weighs intervals by their noise, and {type(schedule).__name__} has no signal at "
                f"t = {schedule.t_max:g}: take ect"
            )

    def intervals(self, progress: float) -> int:
        """N once so much of the training is over; Eq. (11)."""
        return min(self.s0 * 2 ** floor(progress * (log2(self.s1 / self.s0) + 1)), self.s1)

    def loss(self, players: Players, turn: str, batch: Batch) -> Tensor:
        schedule = players.teacher.schedule
        t = times(schedule, self.intervals(players.progress))
        u = _level(schedule, t)
        likely = _probability(u)
        n = np.searchsorted(likely[1:-1], likely[0] + (likely[-1] - likely[0]) * batch.draws.uniform(TIME))  # Eq. (10)
        later, earlier = (_shifted_noise(players, batch, t[k]) for k in (n + 1, n))
        distance = pseudo_huber(self.c * sqrt(batch.x0[0].numel()))
        return weighted(1 / np.diff(u)[n], distance(*self.ends(players, batch, later, earlier)))


@dataclass(frozen=True)
class ECT(Consistency):
    """Easy consistency tuning: r(t) follows t ever closer, from denoising on.  Geng et al. 2024.

    r/t = 1 - q^-(stage + 1) (1 + k sigmoid(-b t)), at least 0, in `tightenings` stages of equal length.
    """

    q: float = 2.0
    k: float = 8.0
    b: float = 1.0
    tightenings: int = 8
    c: float = 0.0003

    recipe: ClassVar[Recipe] = Recipe(12_000, 128, 1e-3)

    def check(self, teacher: Teacher) -> None:
        _need(self.q > 1, "q", self.q, "a number > 1")
        _need(self.k >= 0, "k", self.k, "a number >= 0")
        _need(self.b >= 0, "b", self.b, "a number >= 0")
        _need(self.tightenings >= 1, "tightenings", self.tightenings, "a whole number >= 1")
        _need(self.c > 0, "c", self.c, "a number > 0")

    def earlier(self, u: Array, progress: float) -> Array:
        """The level that belongs to r(t), for that of t."""
        stage = floor(progress * self.tightenings)
        return u * np.maximum(1 - (1 + self.k * expit(-self.b * u)) / self.q ** (stage + 1), 0)

    def loss(self, players: Players, turn: str, batch: Batch) -> Tensor:
        schedule = players.teacher.schedule
        u_end, u_max = _level(schedule, np.array([schedule.t_end, schedule.t_max]))
        low, high = _probability(np.array([u_end, u_max]))
        u = np.exp(P_MEAN + P_STD * ndtri(low + (high - low) * batch.draws.uniform(TIME)))
        u_r = self.earlier(u, players.progress)
        # The paper's target is x_0 where r = 0.  Here r is t_end then, where f is x itself: the same loss, since
        # ||f(x_t, t) - x_end|| = (1 - u_end/u) alpha_end ||D - x_0||, which the weight makes ||D - x_0||/u.
        t, r = (schedule.t_of_lam(-np.log(level)) for level in (u, np.maximum(u_r, u_end)))
        r = np.where(u_r > u_end, r, schedule.t_end)
        later, earlier = (_shifted_noise(players, batch, s) for s in (t, r))
        distance = pseudo_huber(self.c * sqrt(batch.x0[0].numel()))
        return weighted(1 / (u - np.maximum(u_r, u_end)), distance(*self.ends(players, batch, later, earlier)))


def _need(given: bool, name: str, value: object, accepted: str) -> None:
    if not given:
        raise ValueError(f"{name} = {value!r}: it must be {accepted}")
