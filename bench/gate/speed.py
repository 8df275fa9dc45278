"""Speed ratios: a cell's trajectory against a plain loop over its baseline's plan, in the rounds of a fresh process.

A ratio of two times of one round means nearly the same on a busy machine, and on another.  On a CPU the times are of
the processor, not of the wall: a neighbour that takes turns with us costs none of it.  What still differs from process
to process (where memory lay, what the machine did) is measured: a baseline keeps several sessions.  Waiting costs the
processor nothing, so that the same rounds' ratios by the wall are held to those by the processor.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
import torch
from scipy import stats

from bench.cell import Sampler
from bench.forkserver import stream
from bench.gate.baseline import Past, Ratios
from bench.gate.plain import Plain
from bench.measure.clock import timed
from bench.measure.work import Bench, order
from bench.spec import Cell
from bench.stats import LEVEL, holm
from solvers import Plan

ROUNDS, SESSIONS = 40, 5  # of a session; of those that a baseline keeps
BATCH = 1  # where a solver's own time shows most
TRIAL = 2.0  # milliseconds that a trial should take at least, by repetition
SURE = 3.0  # standard deviations between sessions
WAITING = 1.15  # the wall's ratio over the processor's, which busy neighbours move by some percent


class Trial:
    """A cell's trajectory and the plain loop over a recorded plan, on the same network and inputs."""

    def __init__(self, sampler: Sampler, recorded: Plan) -> None:
        x_T, cond = sampler.inputs(0, BATCH)
        z = torch.randn(x_T.shape, generator=torch.Generator().manual_seed(0)).to(x_T)
        plain = Plain(recorded, sampler.network, sampler.denoiser)
        self.device = sampler.device
        self.ours = partial(sampler.solve, sampler.denoiser, x_T, lambda k: z, cond)
        self.plain = partial(plain, x_T, lambda k: z, cond)
        self.repeat = 1

    def warm(self) -> None:
        """Run both, and find how often a trial must repeat them to be long enough for a clock."""
        for _ in range(2):
            took = [self._time(way) for way in (self.ours, self.plain)]
        self.repeat = math.ceil(TRIAL / min(cpu for cpu, _ in took))

    def ratio(self, number: int) -> tuple[float, float]:
        """Ours / plain, by `_time`; which goes first alternates with the round, since the second finds things warm."""
        first, second = (self.ours, self.plain) if number % 2 else (self.plain, self.ours)
        took = {first: self._time(first), second: self._time(second)}
        ours, plain = took[self.ours], took[self.plain]
        return ours[0] / plain[0], ours[1] / plain[1]

    def _time(self, way: Callable[[], object]) -> tuple[float, float]:
        """Milliseconds of the processor, on a GPU of the wall; and of the wall."""
        wall, cpu = timed(lambda: [way() for _ in range(self.repeat)], self.device)
        return wall if self.device.type == "cuda" else cpu, wall


def rounds(
    checkpoint: str, cells: Sequence[Cell], recorded: Mapping[str, Plan], device: torch.device, threads: int
) -> Iterator[dict[str, tuple[float, float]]]:
    """One session, round by round: the ratios of each cell, by its key, as is the baseline's plan of each."""
    bench = Bench(checkpoint, cells, device, threads)
    trials = {key: Trial(sampler, recorded[key]) for key, sampler in bench.samplers.items()}
    for trial in trials.values():
        trial.warm()
    for number in range(ROUNDS):
        yield {key: trials[key].ratio(number) for key, _ in order([(key, BATCH) for key in trials], 0, number)}


@dataclass(frozen=True)
class Session:
    """A cell's ratios, round by round: those that baselines keep, and the same by the wall."""

    ratios: Ratios
    walls: Ratios


def session(
    checkpoint: str, cells: Sequence[Cell], recorded: Mapping[str, Plan], device: torch.device, threads: int
) -> dict[str, Session]:
    """What a session in a fresh process finds, by the cells' keys, as is the baseline's plan of each."""
    found = list(stream(rounds, checkpoint, cells, recorded, device, threads))
    return {
        cell.key: Session(*(tuple(round(each[cell.key][k], 4) for each in found) for k in range(2))) for cell in cells
    }


@dataclass(frozen=True)
class Slowness:
    """A cell's ratio now beside its baseline's: medians, the most it may be, and p of being no worse (Holm's).

    `wall` is the median by the wall.
    """

    now: float
    before: float
    most: float
    p: float
    wall: float

    @property
    def fault(self) -> str:
        """Why it fails; "" when it does not."""
        if self.wall > WAITING * self.now:
            return f"it waits: ratio to a plain loop {self.wall:.3f} by the wall, {self.now:.3f} by the processor"
        if self.p >= LEVEL or self.now <= self.most:
            return ""
        return (
            f"ratio to a plain loop {self.before:.3f} became {self.now:.3f}, {self.now / self.before - 1:+.0%}; "
            f"the noise allows {self.most:.3f} (p = {self.p:.1g})"
        )


def slowness(past: Mapping[str, Past], now: Mapping[str, Session], slower: float) -> dict[str, Slowness]:
    """Of each cell by its label: worse than the baseline by Mann-Whitney's test, and by more than sessions differ."""
    allowed = max(slower, noise(past.values()))
    p = holm([_p(now[label].ratios, past[label].ratios) for label in now])
    centre = {label: median(median(each) for each in past[label].ratios) for label in now}
    return {
        label: Slowness(median(new.ratios), centre[label], centre[label] * allowed, p_of, median(new.walls))
        for (label, new), p_of in zip(now.items(), p, strict=True)
    }


def noise(past: Iterable[Past]) -> float:
    """The factor by which a session's median may exceed the others', from how those of all cells differ."""
    logs = [np.log([median(each) for each in cell.ratios]) for cell in past if len(cell.ratios) > 1]
    dof = sum(len(each) - 1 for each in logs)
    if not dof:
        return 1.0
    sd = math.sqrt(sum(((each - each.mean()) ** 2).sum() for each in logs) / dof)
    return math.exp(SURE * sd * math.sqrt(1 + 1 / len(logs[0])))


def _p(now: Ratios, before: Sequence[Ratios]) -> float:
    """Of ratios that are no larger than before.  Mann & Whitney 1947, Annals of Mathematical Statistics 18(1)."""
    return float(stats.mannwhitneyu(now, [ratio for each in before for ratio in each], alternative="greater").pvalue)
