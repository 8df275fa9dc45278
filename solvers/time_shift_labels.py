"""Which time a state shows, by its variance, in labels of DDPM: what the Time-Shift samplers share.

Li et al. 2023, arXiv 2305.15583, Theorem 3.1: the variance over a sample's pixels stands for 1 - alpha_bar.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from solvers.model import column
from solvers.schedule import EDM, Array, Schedule, VPLinear

LABELS = 1000  # label n is the time (n + 1)/LABELS


@dataclass(frozen=True)
class Shifts:
    """What a run of a Time-Shift sampler did: its samples, and labels that may lie between whole ones.

    `found` (rows, B) are those that the states showed, in place of `nominal` (rows,); `called` (calls, B) are those at
    which the network was called.  Where the calls are what shifts, `found` is `called`.
    """

    x: Tensor
    nominal: tuple[float, ...]
    found: Array
    called: Array

    def __str__(self) -> str:
        """A table: how far each label moved, on average and at most."""
        rows = [f"{'label':>9}{'mean shift':>12}{'lowest':>9}{'highest':>9}{'moved':>8}"]
        for label, found in zip(self.nominal, self.found, strict=True):
            by = found - label
            moved = f"{np.mean(by != 0):.0%}"
            rows.append(f"{label:9.1f}{by.mean():+12.1f}{by.min():+9.0f}{by.max():+9.0f}{moved:>8}")
        return "\n".join(rows)


def _clock(schedule: Schedule) -> Schedule:
    """The schedule whose times are labels: EDM's own are noise levels, for which DDPM's stand in."""
    return VPLinear() if isinstance(schedule, EDM) else schedule


def label_of(schedule: Schedule, t: ArrayLike) -> Any:
    """The label of times: whole at DDPM's own, whatever was lost to rounding."""
    clock = _clock(schedule)
    return (
        np.round(LABELS * (np.asarray(t) if clock is schedule else clock.t_of_lam(schedule.lam(t))) - 1, 9) + 0.0
    )  # no -0.0


def time_of(schedule: Schedule, label: ArrayLike) -> Array:
    """The times of labels."""
    clock, t = _clock(schedule), (np.asarray(label, np.float64) + 1) / LABELS
    return t if clock is schedule else schedule.t_of_lam(clock.lam(t))


def levels(schedule: Schedule, t: ArrayLike, x: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma at times t (B,), to multiply x (B, *shape)."""
    return column(schedule.alpha(t), x), column(schedule.sigma(t), x)


def norm(schedule: Schedule, t: ArrayLike) -> Array:
    """sqrt(alpha^2 + sigma^2), which is 1 where the schedule preserves variance."""
    return np.hypot(schedule.alpha(t), schedule.sigma(t))


def variance(x: Tensor) -> Array:
    """Unbiased variance of each sample's numbers: (B,)."""
    return np.asarray(x.double().flatten(1).var(1).cpu().numpy())


def nearest(values: Array, among: Array) -> Any:
    """For each value the index of the nearest in `among`, the first of two."""
    return np.argmin((values[:, None] - among) ** 2, axis=1)


def coupled(schedule: Schedule, x: Tensor, label: float, window: int) -> Array:
    """The labels t_s that states x (B, *shape) of `label` show: Algorithm 3, line 9, among those that there are."""
    labels = label + np.arange(-(window // 2), window // 2 + 1)
    labels = labels[(labels >= 0) & (labels <= label_of(schedule, schedule.t_max))]
    t = time_of(schedule, labels)
    sigma2 = (schedule.sigma(t) / norm(schedule, t)) ** 2
    return np.asarray(labels[nearest(variance(x) / norm(schedule, time_of(schedule, label)) ** 2, sigma2)])
