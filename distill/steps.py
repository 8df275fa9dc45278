"""What losses are made of, whatever the network predicts: times, noising, jumps along a prediction, teacher's steps.

Everything rests on one update, the line through the state that a data prediction gives (DDIM, Song et al. 2021, arXiv
2010.02502, Eq. (12)); a jump to the schedule's end is a consistency function, the identity there.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from torch import Tensor

import solvers
from solvers.grid import make_grid
from solvers.model import column
from solvers.schedule import Array, RectifiedFlow, Schedule
from solvers.stacked import Stacked

Distance = Callable[[Tensor, Tensor], Tensor]


def usual_grid(schedule: Schedule) -> str:
    """The grid that training times lie on: Karras' where there is always signal, even times in a flow."""
    return "uniform" if isinstance(schedule, RectifiedFlow) else "karras"


def times(schedule: Schedule, steps: int, grid: str = "") -> Array:
    """steps + 1 rising times from the schedule's end, where the data is, to its noise."""
    return np.array(make_grid(grid or usual_grid(schedule), schedule, steps).times[::-1])


def noised(schedule: Schedule, x0: Tensor, noise: Tensor, t: Array) -> Tensor:
    """x_t = alpha_t x0 + sigma_t noise, at a time for each sample."""
    return column(schedule.alpha(t), x0) * x0 + column(schedule.sigma(t), x0) * noise


def jump(schedule: Schedule, x: Tensor, D: Tensor, t: Array, s: Array) -> Tensor:
    """x_s = (sigma_s/sigma_t) x + (alpha_s - alpha_t sigma_s/sigma_t) D, at times (B,); x itself where s = t."""
    ratio = schedule.sigma(s) / schedule.sigma(t)
    return column(ratio, x) * x + column(schedule.alpha(s) - schedule.alpha(t) * ratio, x) * D


def chord(schedule: Schedule, x: Tensor, y: Tensor, t: Array, s: Array) -> Tensor:
    """The D whose jump from x at t lands on y at s, for s < t: `jump` solved for D."""
    ratio = schedule.sigma(s) / schedule.sigma(t)
    gain = schedule.alpha(s) - schedule.alpha(t) * ratio
    return column(1 / gain, x) * y - column(ratio / gain, x) * x


def consistency(schedule: Schedule, x: Tensor, D: Tensor, t: Array) -> Tensor:
    """f(x, t), the jump to the schedule's end: the boundary condition f(x, t_end) = x holds whatever D is."""
    return jump(schedule, x, D, t, np.full_like(t, schedule.t_end))


@lru_cache(maxsize=32)
def intervals(schedule: Schedule, rising: tuple[float, ...], solver: str, calls: int, skip: int = 1) -> Stacked:
    """Plan k goes from rising[k + 1] over `skip` intervals, or all there are, by a solver in `calls` network calls.

    Raises ValueError where the solver cannot: no such budget, a start at pure noise.
    """
    method = solvers.method(solver)
    ends = [(rising[k], rising[max(0, k - skip)]) for k in range(1, len(rising))]
    plans = [method.build(schedule, calls, "uniform", t_start=t, t_end=s) for t, s in ends]
    return Stacked([plan for plan in plans if isinstance(plan, solvers.Plan)])


def l2(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference of each sample, (B,)."""
    return (a - b).square().flatten(1).mean(1)


def pseudo_huber(c: float) -> Distance:
    """sqrt(||a - b||^2 + c^2) - c of each sample, (B,).  Song & Dhariwal 2023, arXiv 2310.14189, Eq. (8)."""
    return lambda a, b: ((a - b).square().flatten(1).sum(1) + c**2).sqrt() - c


def weighted(weights: Array | Sequence[float], each: Tensor) -> Tensor:
    """Mean over samples of weight x loss."""
    return (column(weights, each) * each).mean()
