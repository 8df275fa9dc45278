"""Where the steps lie: grids of times t_0 > t_1 > ... > t_N, each a pure function of (schedule, N, t_start, t_end)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from solvers.registry import did_you_mean
from solvers.schedule import Array, RectifiedFlow, Schedule, VPDiscrete

RHO = 7.0  # Karras et al. 2022, arXiv 2206.00364, Table 1
ORIGIN = 50  # steps of the DDIM teacher that latent consistency models are distilled along


@dataclass(frozen=True)
class Grid:
    """N + 1 times and their levels; N = `steps`.  Raises ValueError unless the times fall, within the schedule."""

    schedule: Schedule
    times: tuple[float, ...]

    def __post_init__(self) -> None:
        t = np.array(self.times)
        if len(t) < 2 or not np.isfinite(t).all() or (np.diff(t) >= 0).any() or t[-1] < 0:
            raise ValueError(f"times must be at least two, strictly decreasing and >= 0, not {self.times}")
        if t[0] > self.schedule.t_max * (1 + 1e-9):
            raise ValueError(f"time {t[0]} lies beyond the schedule's last, {self.schedule.t_max}")

    @property
    def steps(self) -> int:
        return len(self.times) - 1

    @cached_property
    def alpha(self) -> Array:
        return self.schedule.alpha(self.times)

    @cached_property
    def sigma(self) -> Array:
        return self.schedule.sigma(self.times)

    @cached_property
    def lam(self) -> Array:
        return self.schedule.lam(self.times)

    @cached_property
    def u(self) -> Array:
        """sigma / alpha: EDM's noise level, whatever the schedule."""
        with np.errstate(divide="ignore"):
            return np.asarray(self.sigma / self.alpha)


def _uniform(schedule: Schedule, N: int, t_start: float, t_end: float) -> Array:
    return np.linspace(t_start, t_end, N + 1)


def _pinned(t: Array, t_start: float, t_end: float) -> Array:
    """The same times with both ends exact: a round trip through lambda costs an ulp."""
    t[0], t[-1] = t_start, t_end
    return t


def _quadratic(schedule: Schedule, N: int, t_start: float, t_end: float) -> Array:
    return _pinned(np.linspace(np.sqrt(t_start), np.sqrt(t_end), N + 1) ** 2, t_start, t_end)


def _ends(schedule: Schedule, t_start: float, t_end: float) -> Array:
    """lambda at both ends; raises ValueError where there is no signal left, as at rectified flow's t = 1."""
    lam = schedule.lam([t_start, t_end])
    if not np.isfinite(lam).all():
        raise ValueError(f"this grid needs a finite lambda, and at t_start = {t_start} it is {lam[0]}: start later")
    return lam


def _logsnr(schedule: Schedule, N: int, t_start: float, t_end: float) -> Array:
    first, last = _ends(schedule, t_start, t_end)
    t = schedule.t_of_lam(np.linspace(first, last, N + 1))
    return _pinned(t, t_start, t_end)


def block_orders(k: int, N: int) -> list[int]:
    """Orders of the singlestep solver's steps when N calls are spent at order k or below: k, ..., k and the rest.

    Order 3 ends on 2, 1 where nothing is left over.  Lu et al. 2022, arXiv 2206.00927, Section 3.3 ("fast").
    """
    full, rest = divmod(N, k)
    if k == 3 and rest == 0:
        return [3] * (full - 1) + [2, 1]
    return [k] * full + [rest] * (rest > 0)


def _blocks(k: int) -> Callable[[Schedule, int, float, float], Array]:
    """Blocks equal in lambda, one a singlestep update, each divided into as many equal steps as it has calls."""

    def grid(schedule: Schedule, N: int, t_start: float, t_end: float) -> Array:
        first, last = _ends(schedule, t_start, t_end)
        orders = block_orders(k, N)
        edges = np.linspace(first, last, len(orders) + 1)
        inner = [np.linspace(edges[b], edges[b + 1], n + 1)[:-1] for b, n in enumerate(orders)]
        return _pinned(schedule.t_of_lam(np.append(np.concatenate(inner), last)), t_start, t_end)

    return grid


def _karras(schedule: Schedule, N: int, t_start: float, t_end: float) -> Array:
    """N + 1 points equally spaced in (sigma/alpha)^(1/rho).  Karras et al. 2022, Eq. (5)."""
    first, last = np.exp(-_ends(schedule, t_start, t_end) / RHO)
    return _pinned(schedule.t_of_lam(-RHO * np.log(np.linspace(first, last, N + 1))), t_start, t_end)


def _edm(schedule: Schedule, N: int, t_start: float, t_end: float) -> Array:
    """Karras' N points, then t = 0: the last step lands on the data prediction."""
    points = _karras(schedule, N - 1, t_start, t_end) if N > 1 else np.array([t_start])
    return np.append(points, 0.0)


def _labels(schedule: Schedule, labels: Array) -> Array:
    """Times of integer training labels n of a discrete schedule, t = (n + 1)/N; label -1 is the data."""
    if not isinstance(schedule, VPDiscrete):
        raise ValueError(f"discrete grids need a VPDiscrete schedule, not {type(schedule).__name__}")
    return (labels + 1) / len(schedule.betas)


def _leading(schedule: Schedule, N: int, t_start: float, t_end: float) -> Array:
    """Labels (N-1)k, ..., k, 0 with k = T // N, then the data.  Ho et al. 2020; Song et al. 2021."""
    T = round(t_start / schedule.t_end)
    return _labels(schedule, np.append(np.arange(N)[::-1] * (T // N), -1.0))


def _linspace(schedule: Schedule, N: int, t_start: float, t_end: float) -> Array:
    """N labels rounded from T - 1 down to 0 in N equal steps, the last one kept as the end."""
    T = round(t_start / schedule.t_end)
    return _labels(schedule, np.linspace(T - 1, 0, N + 1).round())


def _trailing(schedule: Schedule, N: int, t_start: float, t_end: float) -> Array:
    """Labels T - 1, T - 1 - T/N, ..., then the data.  Lin et al. 2023, arXiv 2305.08891."""
    T = round(t_start / schedule.t_end)
    return _labels(schedule, np.append(np.arange(T, 0, -T / N)[:N].round() - 1, -1.0))


def _of_origin(end: float) -> Callable[[Schedule, int, float, float], Array]:
    """N of the 50 labels 20 j - 1 of latent consistency models, then label `end`.  Luo et al. 2023, arXiv 2310.04378.

    Evenly spaced from the noise on, by index rounded down, as diffusers picks them; LCM ends on the data (label -1),
    TCD on label 0.  Raises ValueError for more steps than there are labels.
    """

    def grid(schedule: Schedule, N: int, t_start: float, t_end: float) -> Array:
        skipped = round(t_start / schedule.t_end) // ORIGIN
        if N > ORIGIN or not skipped:
            raise ValueError(f"the grid of latent consistency models has {ORIGIN} labels, fewer than {N} steps")
        picked = np.linspace(0, ORIGIN, N, endpoint=False).astype(int)
        return _labels(schedule, np.append((ORIGIN - picked) * skipped - 1.0, end))

    return grid


def _shifted(schedule: Schedule, N: int, t_start: float, t_end: float) -> Array:
    """Uniform, shifted towards the noise by the flow's own factor, the last step landing on the data.

    Esser et al. 2024, arXiv 2403.03206, Eq. (23).
    """
    if not isinstance(schedule, RectifiedFlow):
        raise ValueError(f"the shifted grid needs a RectifiedFlow schedule, not {type(schedule).__name__}")
    k = schedule.shift
    t = np.linspace(t_start / (k - (k - 1) * t_start), 0.0, N + 1)
    return _pinned(k * t / (1 + (k - 1) * t), t_start, 0.0)


GRIDS: dict[str, Callable[[Schedule, int, float, float], Array]] = {
    "uniform": _uniform,
    "quadratic": _quadratic,
    "logsnr": _logsnr,
    "logsnr_2": _blocks(2),
    "logsnr_3": _blocks(3),
    "karras": _karras,
    "edm": _edm,
    "leading": _leading,
    "linspace": _linspace,
    "trailing": _trailing,
    "lcm": _of_origin(-1.0),
    "tcd": _of_origin(0.0),
    "shifted": _shifted,
}


def make_grid(
    name: str, schedule: Schedule, steps: int, t_start: float | None = None, t_end: float | None = None
) -> Grid:
    """The grid called `name` with `steps` steps from t_start (default t_max) to t_end (default the schedule's t_end).

    Raises UnknownNameError for an unknown grid, ValueError for times outside the schedule.
    """
    if name not in GRIDS:
        raise did_you_mean("grid", name, list(GRIDS))
    start = schedule.t_max if t_start is None else t_start
    end = schedule.t_end if t_end is None else t_end
    if not 0 < end < start:
        raise ValueError(f"t_end = {end} must lie between 0 and t_start = {start}")
    return explicit(schedule, GRIDS[name](schedule, steps, start, end).tolist())


def explicit(schedule: Schedule, times: Sequence[float]) -> Grid:
    """The grid of exactly these times."""
    return Grid(schedule, tuple(float(t) for t in times))
