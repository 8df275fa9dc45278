"""Reflow: a flow straightened on its own pairs of noise and data; BOSS: in steps where it bends least.

Every schedule's x_t = alpha_t x0 + sigma_t n is a rectified flow of z = x/(alpha + sigma), in the time
tau = sigma/(alpha + sigma): dz/dtau = v = n - x0, from noise at tau = 1 to data at 0.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

import solvers
from distill.batch import LOSS, Batch, Draws
from distill.method import Method, Players, Teacher
from distill.steps import chord, jump, l2, usual_grid
from distill.student import FewStep
from distill.trainer import Recipe
from solvers.model import Cond, column
from solvers.schedule import Array, Schedule


def tau(schedule: Schedule, t: Array) -> Array:
    """Rectified flow's own time, sigma/(alpha + sigma)."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return sigma / (alpha + sigma)


def time_at(schedule: Schedule, tau: Array) -> Array:
    """The schedule's time at which sigma/(alpha + sigma) is tau."""
    with np.errstate(divide="ignore"):
        return schedule.t_of_lam(np.log1p(-tau) - np.log(tau))


def flow_grid(schedule: Schedule, steps: int) -> Array:
    """steps + 1 falling times from the schedule's noise to its end, equally spaced in tau."""
    ends = np.array([schedule.t_max, schedule.t_end])
    first, last = tau(schedule, ends).tolist()
    inner = np.linspace(first, last, steps + 1)[1:-1]
    return np.concatenate([ends[:1], time_at(schedule, inner), ends[1:]])


@lru_cache(maxsize=32)
def piece(schedule: Schedule, solver: str, calls: int, t: float, s: float) -> solvers.Plan:
    """A registered solver's plan from t to s in so many calls; raises ValueError where it has none, or draws noise."""
    plan = solvers.method(solver).build(schedule, calls, usual_grid(schedule), t_start=t, t_end=s)
    if not isinstance(plan, solvers.Plan) or plan.draws:
        raise ValueError(f"solver = {solver}: the ODE is solved by a solver of fixed steps that draws no noise")
    return plan


@dataclass(frozen=True)
class Reflow(Method):
    """Velocity regression on lines between noise and what the teacher makes of it.  Liu et al. 2022, arXiv 2209.03003.

        L = ||n - x0 - v(x_t, t)||^2,  tau_t ~ U  (Eq. (1)),  (n, x0) a pair of the teacher's ODE

    The pair is solved for in `calls` calls, then looked at at `each` times of its own.  In the last part `distil` of
    the training all of them are the noise's: distillation at t = 0 of Section 2.2, for one step.
    """

    recipe: ClassVar[Recipe] = Recipe(steps=2_000, batch=256, lr=1e-3)

    solver: str = "flow_heun"
    calls: int = 32
    each: int = 8
    distil: float = 0.0

    def check(self, teacher: Teacher) -> None:
        if self.each < 1:
            raise ValueError(f"each = {self.each}: a pair is looked at at one time at least")
        if not 0 <= self.distil <= 1:
            raise ValueError(f"distil = {self.distil:g} is no part of the training: it lies in [0, 1]")
        piece(teacher.schedule, self.solver, self.calls, teacher.schedule.t_max, teacher.schedule.t_end)

    def knots(self, schedule: Schedule) -> Array:
        """Falling times between which the flow is to be straight."""
        return np.array([schedule.t_max, schedule.t_end])

    def sampler(self, schedule: Schedule, progress: float = 1.0) -> FewStep:
        budgets = (1,) if self._distils(progress) else (1, 2, 4)
        return FewStep("ddim", times={n: tuple(flow_grid(schedule, n).tolist()) for n in budgets})

    def _distils(self, progress: float) -> bool:
        return self.distil > 0 and progress >= 1 - self.distil

    def loss(self, players: Players, turn: str, batch: Batch) -> Tensor:
        schedule, knots, draws = players.teacher.schedule, self.knots(players.teacher.schedule), batch.draws
        pair = np.arange(draws.count) // self.each
        x_T = schedule.prior_std(knots[0]) * batch.noise(LOSS)[: pair[-1] + 1]
        cond = {k: v[: len(x_T)] for k, v in batch.cond.items()}
        with torch.no_grad():
            states = self._states(players.teacher, x_T, cond, knots)
        k = draws.integers(LOSS + 1, len(knots) - 1)
        x, y, start, end = states[k, pair], states[k + 1, pair], knots[k], knots[k + 1]
        x0 = chord(schedule, x, y, start, end)
        sigma = schedule.sigma(start)
        v = column(1 / sigma, x) * x - column((schedule.alpha(start) + sigma) / sigma, x) * x0  # n - x0
        t = start if self._distils(players.progress) else self._between(schedule, start, end, draws)
        x_t = jump(schedule, x, x0, start, t)
        return l2(players.student.at_each(x_t, t, "velocity", {k: c[pair] for k, c in cond.items()}), v).mean()

    def _between(self, schedule: Schedule, start: Array, end: Array, draws: Draws) -> Array:
        first, last = tau(schedule, start), tau(schedule, end)
        return time_at(schedule, first + (last - first) * draws.uniform(LOSS + 2))

    def _states(self, teacher: Teacher, x: Tensor, cond: Cond, knots: Array) -> Tensor:
        """The teacher's solution at the knots, (knots, P, *shape)."""
        states = [x]
        for t, s in zip(knots[:-1].tolist(), knots[1:].tolist(), strict=True):
            plan = piece(teacher.schedule, self.solver, self.calls, t, s)
            states.append(solvers.sample(plan, teacher.denoiser, states[-1], cond=cond))
        return torch.stack(states)


@dataclass(frozen=True)
class BOSS(Reflow):
    """Reflow piece by piece, for a budget of its own.  Nguyen et al. 2023, arXiv 2312.16414.

    The pieces are the teacher's: the `steps` steps between `points` + 1 Euler states whose summed error is least,
    averaged over so many `samples` (Section 4.1).  `times`, falling, are chosen so unless they are given.  Velocities
    leap from piece to piece where a network's do not: the last part `distil`, at the pieces' starts alone, mends that.
    """

    recipe: ClassVar[Recipe] = Recipe(steps=5_000, batch=256, lr=5e-4)

    calls: int = 8
    distil: float = 0.5
    steps: int = 4
    points: int = 100
    samples: int = 1024
    times: str = ""

    def check(self, teacher: Teacher) -> None:
        super().check(teacher)
        if not 1 <= self.steps <= self.points:
            raise ValueError(f"boss: steps = {self.steps} of {self.points} points: it takes 1 to {self.points}")
        if self.samples < 1:
            raise ValueError(f"boss: samples = {self.samples}: the steps are chosen on one at least")
        if self.times and not self._fits(teacher.schedule):
            wanted = f"{self.steps + 1} falling numbers from {teacher.schedule.t_max:g}"
            raise ValueError(f"boss: times = {self.times!r} is not {wanted}")

    def _fits(self, schedule: Schedule) -> bool:
        try:
            knots = self.knots(schedule)
        except ValueError:  # a word that is no number
            return False
        falling = (np.diff(knots) < 0).all() and knots[-1] > 0
        return len(knots) == self.steps + 1 and knots[0] == schedule.t_max and bool(falling)

    def prepared(self, teacher: Teacher, draws: Draws) -> Self:
        if self.times:
            return self
        schedule, draws = teacher.schedule, replace(draws, count=self.samples)
        z, cond = draws.normal(LOSS, teacher.shape), teacher.conditions(draws)
        grid = flow_grid(schedule, self.points)
        cost = bends(teacher, grid, schedule.prior_std(grid[0]) * z, cond)
        return replace(self, times=" ".join(map(str, grid[list(best_steps(cost, self.steps))].tolist())))

    def knots(self, schedule: Schedule) -> Array:
        if not self.times:
            raise ValueError("boss has no times yet: a distillation chooses them by its teacher")
        return np.array([float(t) for t in self.times.split()])

    def sampler(self, schedule: Schedule, progress: float = 1.0) -> FewStep:
        return FewStep("ddim", times={self.steps: tuple(self.knots(schedule).tolist())})


@torch.no_grad()
def bends(teacher: Teacher, grid: Array, x: Tensor, cond: Cond) -> Array:
    """c[i, j] = ||z_i + v_i (tau_j - tau_i) - z_j||^2, averaged over numbers: one step's error from i to j > i.

    z_i are the teacher's Euler states at the grid's falling times from x, each v_i its velocity there.
    """
    at, scale = tau(teacher.schedule, grid), teacher.schedule.alpha(grid) + teacher.schedule.sigma(grid)
    z, v = [x / scale[0]], []
    for i, t in enumerate(grid[:-1]):
        v.append(teacher.denoiser.at_each(scale[i] * z[i], np.full(len(x), t), "velocity", cond))
        z.append(z[i] + (at[i + 1] - at[i]) * v[i])
    cost = np.full((len(grid), len(grid)), np.inf)
    for i, j in combinations(range(len(grid)), 2):
        cost[i, j] = (z[i] + (at[j] - at[i]) * v[i] - z[j]).square().mean().item()
    return cost


def best_steps(cost: Array, steps: int) -> tuple[int, ...]:
    """The path 0 = i_0 < ... < i_steps = K of least summed cost[i_k, i_(k+1)], by dynamic programming.

    `cost` (K + 1, K + 1) is read above its diagonal.  Raises ValueError for more steps than K.
    """
    K = len(cost) - 1
    if not 1 <= steps <= K:
        raise ValueError(f"{steps} steps between {K + 1} points: there can be 1 to {K}")
    ahead = np.where(np.triu(np.ones_like(cost), 1) > 0, cost, np.inf)
    least, came = np.where(np.arange(K + 1) > 0, np.inf, 0.0), []
    for _ in range(steps):
        total = least[:, None] + ahead
        came.append(total.argmin(0))
        least = total.min(0)
    path = [K]
    for before in reversed(came):
        path.append(int(before[path[-1]]))
    return tuple(reversed(path))
