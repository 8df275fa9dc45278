"""Consistency models: the student's f(x_t, t), where the trajectory through x_t ends, is drawn to f(x_r, r) at r < t.

Song et al. 2023, arXiv 2303.01469 (CD, CT); Song & Dhariwal 2023, arXiv 2310.14189 (the improved CT); Geng et al. 2024,
arXiv 2406.14548 (ECT).  f is the jump to the schedule's end along the student's data prediction: f(x, t_end) = x
whatever the network says.  Where the papers weigh by t, losses do by u = sigma/alpha: the noise level of x_t/alpha_t =
x_0 + u eps on any schedule, and t itself on EDM's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import floor, log2, sqrt
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from scipy.special import expit, ndtr, ndtri
from torch import Tensor

from distill.batch import LOSS, Batch
from distill.method import Method, Players, Teacher
from distill.steps import Distance, consistency, intervals, l2, noised, pseudo_huber, times, usual_grid, weighted
from distill.student import FewStep
from distill.trainer import Recipe
from solvers.model import Denoiser
from solvers.schedule import Array, Schedule

NOISE, TIME = LOSS, LOSS + 1  # streams
P_MEAN, P_STD = -1.1, 2.0  # of ln u where no teacher's solver says what times there are; Song & Dhariwal 2023, Table 1


class Point(NamedTuple):
    """States x (B, *shape) at times t (B,)."""

    x: Tensor
    t: Array


class Consistency(Method):
    """What the three share: the ends of two points of a trajectory, and a sampler that jumps there and renoises."""

    def sampler(self, schedule: Schedule, progress: float = 1.0) -> FewStep:
        return FewStep("tcd", {"eta": 1.0}, grid=usual_grid(schedule), budgets=(1, 2, 4))

    def ends(self, players: Players, batch: Batch, later: Point, earlier: Point) -> tuple[Tensor, Tensor]:
        """f(x_t, t) of the student and sg f(x_r, r) of the target, with the same dropout."""

        def f(denoiser: Denoiser, x: Tensor, t: Array) -> Tensor:
            return consistency(denoiser.schedule, x, denoiser.at_each(x, t, "data", dict(batch.cond)), t)

        # a fork gives the generator back as it was
        with torch.no_grad(), torch.random.fork_rng([later.x.device] if later.x.is_cuda else []):
            target = f(players.target, *earlier)
        return f(players.student, *later), target


@dataclass(frozen=True)
class CD(Consistency):
    """Consistency distillation: x_r is one step of the teacher's solver away from x_t.  Song et al. 2023, Algorithm 2.

    t and r are neighbours among `points` + 1 times, between which `solver` makes `calls` network calls.  `c` is
    pseudo-Huber's for each sqrt(d) of samples of d numbers.
    """

    solver: str = "heun"
    calls: int = 2
    points: int = 18
    distance: str = "huber"
    c: float = 0.02

    recipe: ClassVar[Recipe] = Recipe(5_000, 128, 1e-3)
    target_decay: ClassVar[float] = 0.9  # without an average the errors of many small steps add up

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
        with torch.no_grad():  # Eq. (6)
            x_hat = step.run(n, lambda y, s: teacher.at_each(y, s, step.predicts, dict(batch.cond)), x)
        d = _huber(self.c, x) if self.distance == "huber" else l2
        return d(*self.ends(players, batch, Point(x, t[n + 1]), Point(x_hat, t[n]))).mean()  # Eq. (7)


@dataclass(frozen=True)
class CT(Consistency):
    """Consistency training, improved: x_r is x_t with less of the same noise.  Song & Dhariwal 2023.

    t and r are neighbours among N + 1 times, where N doubles from `s0` to `s1` over the training.  No teacher is asked.
    `c` is pseudo-Huber's for each sqrt(d) of samples of d numbers.
    """

    s0: int = 10
    s1: int = 160
    c: float = 0.00054

    recipe: ClassVar[Recipe] = Recipe(10_000, 128, 1e-3)

    def check(self, teacher: Teacher) -> None:
        _need(self.s0 >= 1, "s0", self.s0, "a whole number >= 1")
        _need(self.s1 >= self.s0, "s1", self.s1, f"a whole number >= s0 = {self.s0}")
        _need(self.c > 0, "c", self.c, "a number > 0")
        schedule = teacher.schedule
        if schedule.alpha(schedule.t_max) == 0:
            kind = type(schedule).__name__
            raise ValueError(f"ct weighs intervals by 1/(u' - u), and {kind} begins with pure noise, u = inf: take ect")

    def intervals(self, progress: float) -> int:
        """N once so much of the training is over, a doubling in equal parts of it; Eq. (11)."""
        return min(self.s0 * 2 ** floor(progress * (log2(self.s1 / self.s0) + 1)), self.s1)

    def loss(self, players: Players, turn: str, batch: Batch) -> Tensor:
        schedule = players.teacher.schedule
        t = times(schedule, self.intervals(players.progress))
        u = _level(schedule, t)
        below = _probability(u)
        n = np.searchsorted(below[1:-1], _between(below[0], below[-1], batch))  # Eq. (10)
        at = _line(schedule, batch)
        d = _huber(self.c, batch.x0)
        return weighted(1 / np.diff(u)[n], d(*self.ends(players, batch, at(t[n + 1]), at(t[n]))))  # Eq. (2)


@dataclass(frozen=True)
class ECT(Consistency):
    """Easy consistency tuning: r comes ever closer to t, and is 0 at first: denoising.  Geng et al. 2024.

    r/t = 1 - q^-(stage + 1) (1 + k sigmoid(-b t)), at least 0, in `tightenings` stages of equal length.  No teacher is
    asked.  `c` is pseudo-Huber's for each sqrt(d) of samples of d numbers.
    """

    q: float = 2.0
    k: float = 8.0
    b: float = 1.0
    tightenings: int = 8
    c: float = 0.00054

    recipe: ClassVar[Recipe] = Recipe(12_000, 128, 1e-3)

    def check(self, teacher: Teacher) -> None:
        _need(self.q > 1, "q", self.q, "a number > 1")
        _need(self.k >= 0, "k", self.k, "a number >= 0")
        _need(self.b >= 0, "b", self.b, "a number >= 0")
        _need(self.tightenings >= 1, "tightenings", self.tightenings, "a whole number >= 1")
        _need(self.c > 0, "c", self.c, "a number > 0")

    def earlier(self, u: Array, progress: float) -> Array:
        """The level at r for that at t, once so much of the training is over."""
        decay = self.q ** -(floor(progress * self.tightenings) + 1)
        return u * np.maximum(1 - decay * (1 + self.k * expit(-self.b * u)), 0)

    def loss(self, players: Players, turn: str, batch: Batch) -> Tensor:
        """Where the paper has r = 0 and the target x_0, here r is t_end, where f is x itself.  The loss is the same.

        ||f(x_t, t) - x_end|| = alpha_end (1 - u_end/u) ||D - x_0||, which 1/(u - u_end) makes alpha_end ||D - x_0||/u.
        """
        schedule = players.teacher.schedule
        u_end, u_max = _level(schedule, np.array([schedule.t_end, schedule.t_max]))
        low, high = _probability(np.array([u_end, u_max]))
        u = np.exp(P_MEAN + P_STD * ndtri(_between(low, high, batch)))
        u_r = np.maximum(self.earlier(u, players.progress), u_end)
        t, r = schedule.t_of_lam(-np.log(u)), schedule.t_of_lam(-np.log(u_r))
        at = _line(schedule, batch)
        ends = self.ends(players, batch, at(t), at(np.where(u_r > u_end, r, schedule.t_end)))
        return weighted(1 / (u - u_r), _huber(self.c, batch.x0)(*ends))


def _level(schedule: Schedule, t: Array) -> Array:
    """u = sigma/alpha at times t."""
    return np.exp(-schedule.lam(t))


def _probability(u: Array) -> Array:
    """Of a level below u, with ln u ~ N(P_mean, P_std^2)."""
    return ndtr((np.log(u) - P_MEAN) / P_STD)


def _between(low: float, high: float, batch: Batch) -> Array:
    """Even draws in (low, high), (B,): probabilities of levels, where low and high belong to the schedule's ends."""
    return low + (high - low) * batch.draws.uniform(TIME)


def _line(schedule: Schedule, batch: Batch) -> Callable[[Array], Point]:
    """The batch noised to any times, always by the same noise."""
    noise = batch.noise(NOISE)
    return lambda t: Point(noised(schedule, batch.x0, noise, t), t)


def _huber(c: float, x: Tensor) -> Distance:
    """Pseudo-Huber for samples like those of x.  Song & Dhariwal 2023, Section 3.3."""
    return pseudo_huber(c * sqrt(x[0].numel()))


def _need(given: bool, name: str, value: object, accepted: str) -> None:
    if not given:
        raise ValueError(f"{name} = {value}: it must be {accepted}")
