"""What an estimate's error is, from the parts that samples contribute to it, and which estimates can be told apart.

An estimate over samples i.i.d. from a solver is close to its limit plus the mean of the samples' influences (Hampel
1974).  A record keeps the sums of that over consecutive blocks of samples, a few numbers whatever N: they give the
standard error, and, since all cells of a sweep draw the same noise for the same sample, the errors of differences.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

BLOCKS = 200  # parts in a record: the standard error of a difference is then known to 5 %
GROUPS = 20  # left out one after another by the grouped jackknife
LEVEL = 0.05  # two-sided: what counts as told apart errs this often
POWER = 0.8

Parts = tuple[float, ...]
Floats = NDArray[np.float64]


def parts_of(influence: Floats) -> Parts:
    """What consecutive blocks of samples add to an estimate whose influences, (N,), are given; at most BLOCKS."""
    blocks = min(BLOCKS, len(influence))
    starts = np.arange(blocks) * len(influence) // blocks
    sums = np.add.reduceat(influence - influence.mean(), starts) / len(influence)
    return tuple(float(f"{part:.5g}") for part in sums)


def spread(parts: Parts | Floats) -> float:
    """The standard error of an estimate with these parts."""
    x = np.asarray(parts)
    return float(np.sqrt((x**2).sum() * len(x) / (len(x) - 1))) if len(x) > 1 else float("nan")


def jackknife(estimate: Callable[[NDArray[np.bool_]], float], n: int) -> Parts:
    """Parts of an estimate without a formula for its influences: leave out one group of samples after another.

    `estimate` takes which of the n samples are used, (n,).  Groups are consecutive samples, as blocks are.
    """
    group = groups_of(n)
    return parts_without(np.array([estimate(group != g) for g in range(group[-1] + 1)]))


def groups_of(n: int) -> NDArray[np.int64]:
    """Which group each of n samples is left out with, (n,): consecutive ones, as blocks are."""
    return np.arange(n) * min(GROUPS, n) // n


def parts_without(left_out: Floats) -> Parts:
    """Parts of an estimate from what it is without each of the groups."""
    groups = len(left_out)
    return tuple(float(f"{part:.5g}") for part in (left_out.mean() - left_out) * (groups - 1) / groups)


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error: the mean over `seeds` of an estimate from `n` samples each, and its parts."""

    value: float
    se: float
    n: int
    seeds: tuple[int, ...] = (0,)
    parts: Parts = ()

    @classmethod
    def of(cls, value: Mapping[str, Any], seed: int) -> "Estimate":
        """Of a record's value; those of older formats have no parts."""
        return cls(value["value"], value["se"], value["n"], (seed,), tuple(value.get("parts", ())))


def combine(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of estimates that differ in their seed alone, in order of seeds."""
    parts = sorted(estimates, key=lambda estimate: estimate.seeds)
    k = len(parts)
    return Estimate(
        value=sum(e.value for e in parts) / k,
        se=math.hypot(*(e.se for e in parts)) / k,
        n=parts[0].n,
        seeds=tuple(seed for e in parts for seed in e.seeds),
        parts=tuple(part / k for e in parts for part in e.parts) if all(e.parts for e in parts) else (),
    )


def agreement(estimates: Sequence[Estimate]) -> float:
    """p of seeds that lie as far apart as these, were their standard errors right: Cochran's chi-square.

    1 where there is nothing to compare.  Cochran 1954, Biometrics 10(1).
    """
    value, se = (np.array([getattr(e, name) for e in estimates]) for name in ("value", "se"))
    if len(estimates) < 2 or not (se > 0).all():
        return 1.0
    mean = (value / se**2).sum() / (1 / se**2).sum()
    return float(stats.chi2.sf((((value - mean) / se) ** 2).sum(), len(estimates) - 1))


@dataclass(frozen=True)
class Difference:
    """Of two estimates: `paired` where they share their noise, `dof` of the t distribution its error is known by."""

    value: float
    se: float
    dof: float
    paired: bool

    @property
    def p(self) -> float:
        """Two-sided, of no difference; 1 where the error is unknown."""
        if self.value == 0 or math.isnan(self.se):
            return 1.0
        return float(2 * stats.t.sf(abs(self.value) / self.se, self.dof)) if self.se else 0.0

    @property
    def tie(self) -> bool:
        """Whether it is less than two of its standard errors, or its error is unknown."""
        return self.value == 0 or not abs(self.value) >= 2 * self.se

    @property
    def interval(self) -> tuple[float, float]:
        """That holds the limit's difference with 95 %."""
        wide = float(stats.t.ppf(1 - LEVEL / 2, self.dof)) * self.se
        return self.value - wide, self.value + wide


def difference(a: Estimate, b: Estimate) -> Difference:
    """a - b, block by block where both come from the same noise; taken as independent where they do not.

    The parts say how the two errors go together, the standard errors how large each is.
    """
    paired = bool(a.parts) and (a.seeds, a.n, len(a.parts)) == (b.seeds, b.n, len(b.parts))
    dof = min((len(e.parts) - len(e.seeds) for e in (a, b) if e.parts), default=math.inf)
    se = spread(_sized(a) - _sized(b)) if paired else math.hypot(a.se, b.se)
    return Difference(a.value - b.value, se, max(dof, 1), paired)


def _sized(estimate: Estimate) -> Floats:
    """Parts whose spread is the standard error: 200 blocks alone know it to 5 %, the samples better."""
    parts = np.asarray(estimate.parts)
    about = spread(parts)
    return parts * (estimate.se / about) if about > 0 else parts


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted for all being looked at: Holm 1979, Scandinavian Journal of Statistics 6(2), step-down."""
    order, adjusted, highest = np.argsort(p), [0.0] * len(p), 0.0
    for k, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - k) * p[i]))
        adjusted[i] = highest
    return adjusted


def samples_to_separate(d: Difference, n: int) -> tuple[float, float, float]:
    """Samples at which a two-sided test at 5 % sees the difference with a power of 80 %: estimate, lowest, highest.

    The error falls as 1/sqrt(n); lowest and highest are for the ends of the difference's 95 % interval, and infinite
    where that holds 0.
    """
    seen = float(stats.norm.ppf(1 - LEVEL / 2) + stats.norm.ppf(POWER)) * d.se
    low, high = d.interval
    nearest, farthest = 0.0 if low <= 0 <= high else min(abs(low), abs(high)), max(abs(low), abs(high))

    def needed(size: float) -> float:
        return n * (seen / size) ** 2 if size else math.inf

    return needed(abs(d.value)), needed(farthest), needed(nearest)
