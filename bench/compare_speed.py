"""Whether a solver became slower or larger between two measurements, of different sessions.

Sessions differ in how fast the machine was, so that a trajectory is taken as a multiple of the bare network calls of
its own round.  Rounds of both sides are compared by a Wilcoxon-Mann-Whitney test, a stratum a budget, whose ranks are
added as van Elteren 1960 (Bulletin de l'Institut International de Statistique 37) does; p is adjusted over all solvers
and batches (Holm 1979).  It knows how rounds scatter, and not how sessions do.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
from scipy import stats

from bench.stats import Floats, holm
from bench.store import Record

BATCHES = {"batch 1": 0, "best batch": -1}


@dataclass(frozen=True)
class Timed:
    """A cell that both sides measured."""

    run: str
    series: str
    nfe: int | None
    a: Record
    b: Record


@dataclass(frozen=True)
class Speed:
    """A solver at a batch, over `budgets`: b over a, geometric means of milliseconds and of multiples of the network.

    `memory` is the largest peak above the weights' of both sides, MiB, at the best batch.
    """

    run: str
    series: str
    at: str
    budgets: int
    ratio: float
    relative: float
    p: float
    memory: tuple[float, float]


def speeds(cells: Sequence[Timed]) -> list[Speed]:
    """One a run, solver and batch that both sides timed alike, slowest first; `p` is adjusted over all."""
    ordered = sorted(cells, key=lambda cell: (cell.run, cell.series))
    found = [
        speed
        for (run, series), of in groupby(ordered, key=lambda cell: (cell.run, cell.series))
        for speed in _speeds(run, series, list(of))
    ]
    adjusted = holm([speed.p for speed in found])
    return sorted(
        (replace(speed, p=p) for speed, p in zip(found, adjusted, strict=True)), key=lambda speed: -speed.relative
    )


def _speeds(run: str, series: str, cells: Sequence[Timed]) -> Iterator[Speed]:
    memory = tuple(max(each["memory"]["above_weights_mib"] for each in side) for side in _sides(cells))
    for name, k in BATCHES.items():
        pairs = [(cell.a["latency"][k], cell.b["latency"][k]) for cell in cells]
        pairs = [pair for pair in pairs if pair[0]["batch"] == pair[1]["batch"] and all("rounds" in x for x in pair)]
        if not pairs:
            continue
        strata = [(_multiples(a), _multiples(b)) for a, b in pairs]
        relative = np.mean([np.log(np.median(b) / np.median(a)) for a, b in strata])
        ratio = np.mean([math.log(b["median_ms"] / a["median_ms"]) for a, b in pairs])
        yield Speed(run, series, name, len(pairs), math.exp(ratio), math.exp(relative), van_elteren(strata), memory)


def _sides(cells: Sequence[Timed]) -> tuple[list[Record], list[Record]]:
    return [cell.a for cell in cells], [cell.b for cell in cells]


def _multiples(timed: dict[str, Any]) -> Floats:
    """A trajectory's time over its bare network calls', round by round."""
    return np.array(timed["rounds"]["total_ms"]) / np.array(timed["rounds"]["network_ms"])


def van_elteren(strata: Sequence[tuple[Floats, Floats]]) -> float:
    """Two-sided p of no shift between the two samples of any stratum."""
    total = variance = 0.0
    for a, b in strata:
        size = len(a) + len(b)
        ranks = stats.rankdata(np.concatenate([a, b]))
        total += ranks[len(a) :].sum() / (size + 1) - len(b) / 2
        variance += len(a) * len(b) / size * ranks.var(ddof=1) / (size + 1) ** 2  # which knows of ties
    return float(2 * stats.norm.sf(abs(total) / math.sqrt(variance))) if variance else 1.0
