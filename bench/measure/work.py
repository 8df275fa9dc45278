"""What measuring processes do, each as a generator whose items are sent back as they come."""

import gc
import resource
import time
import traceback
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.causes import cause_of
from bench.cell import Sampler
from bench.cells import Subjects
from bench.checkpoints import load
from bench.forkserver import branch
from bench.measure.batch import doubling
from bench.measure.clock import clocks, timed
from bench.measure.trial import Apart, Trajectory
from bench.spec import Cell

CALLS, CALLING = 3, 30.0  # at least so many calls, and milliseconds, behind a point of the throughput curve
WARM_UP, MOST = -1, 30  # the number of the round that is not counted, and how many are
MIB = 2**20
Name = tuple[str, int]  # of a trial: a cell's key or the name of work timed apart, and the batch


@dataclass(frozen=True)
class Begun:
    """A trial is about to run: whoever hears no more of it knows what ended the process."""

    trial: Name


@dataclass(frozen=True)
class Failed:
    """A trial raised; none of its name will run again."""

    trial: Name
    cause: str
    traceback: str


@dataclass(frozen=True)
class Round:
    """A finished round: what each trial took, in the order they ran, and a GPU's clocks at its end."""

    trials: list[dict[str, Any]]
    clocks_mhz: list[int] | None


class Bench:
    """Cells of one checkpoint ready to run, on one copy of each network and mode, and common inputs."""

    def __init__(self, checkpoint: str, cells: Sequence[Cell], device: torch.device, threads: int) -> None:
        torch.set_num_threads(threads)
        self.device = device
        subjects = Subjects(load(checkpoint))
        self.checkpoint = subjects.checkpoint
        networks = {(cell.digest, cell.mode): cell for cell in cells}
        made = {about: about[1].ready(subjects.of(cell).network, device) for about, cell in networks.items()}
        self.samplers = {
            cell.key: Sampler(cell, subjects.of(cell), device, made[cell.digest, cell.mode]) for cell in cells
        }
        self._inputs: dict[Any, tuple[Tensor, dict[str, Tensor]]] = {}

    def trial(self, key: str, batch: int) -> Trajectory:
        """A cell's, not run yet."""
        sampler = copy(self.samplers[key])  # a CUDA graph is of one batch, and is captured when that is warmed up
        cell = sampler.cell
        about = (cell.seed, cell.plan.times[0], batch, cell.task, cell.mode, cell.digest)
        if about not in self._inputs:
            self._inputs[about] = sampler.inputs(0, batch)
        return Trajectory(sampler, *self._inputs[about])

    def warm(self, name: Name) -> Trajectory | Apart:
        """The trial of a cell or of work timed apart, which has run once."""
        what, batch = name
        make = self.checkpoint.apart.get(what)
        made = self.trial(what, batch) if make is None else Apart(make(self.device, batch), self.device)
        made.warm()
        return made


def throughput(
    checkpoint: str, cell: Cell, device: torch.device, threads: int, largest: int
) -> Iterator[dict[str, Any]]:
    """Points of the network's throughput curve, then why it ended; see `doubling`."""
    (sampler,) = Bench(checkpoint, [cell], device, threads).samplers.values()
    times = getattr(cell.plan, "call_times", cell.plan.times[:1])
    dearest = max(times, key=sampler.denoiser.cost)  # guidance may act at some times only

    @torch.no_grad()
    def cost(batch: int) -> float:
        x_T, cond = sampler.inputs(0, batch)
        call = partial(sampler.denoiser, x_T, dearest, None, cond)
        call()
        took: list[float] = []
        while len(took) < CALLS or sum(took) < CALLING:
            took.append(timed(call, device)[0])
        return min(took) / 1e3  # whatever else the machine does only adds

    yield from doubling(cost, largest)


def peaks(
    checkpoint: str, cells: Sequence[Cell], device: torch.device, threads: int, batch: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each cell's peak memory in one trajectory at a batch size, whole and above what weights and inputs held: MiB.

    A GPU's count starts afresh for each cell; a process's cannot, so that each cell takes a process, which branches
    off with the network loaded.
    """
    if device.type == "cuda":
        bench = Bench(checkpoint, cells, device, threads)
        for cell in cells:
            yield from _peak_of(bench, cell, threads, batch)
        return
    bench = Bench(checkpoint, cells, device, 1)  # torch's pool of threads would not outlive a branch
    for cell in cells:
        yield from branch(_peak_of, bench, cell, threads, batch)


def _peak_of(bench: Bench, cell: Cell, threads: int, batch: int) -> Iterator[tuple[str, dict[str, Any]]]:
    torch.set_num_threads(threads)
    device = bench.device
    trial = bench.trial(cell.key, batch)  # brings text encoders, which are no part of sampling
    before = _held(device)
    trial.trajectory()
    after = _peak(device)
    above = {f"{what}above_weights_mib": (after[what] - before[what]) / MIB for what in after}
    of = "a GPU's allocations" if device.type == "cuda" else "peak resident set"
    yield cell.key, {"of": of, "batch": batch} | {f"{what}peak_mib": after[what] / MIB for what in after} | above


def _held(device: torch.device) -> dict[str, int]:
    """Bytes held by now, the peaks' counts begun anew where that can be; by the beginnings of their names."""
    if device.type != "cuda":
        return _peak(device)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return {"": torch.cuda.memory_allocated(device), "reserved_": torch.cuda.memory_reserved(device)}


def _peak(device: torch.device) -> dict[str, int]:
    """The most bytes held so far."""
    if device.type != "cuda":
        return {"": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    return {"": torch.cuda.max_memory_allocated(device), "reserved_": torch.cuda.max_memory_reserved(device)}


@dataclass(frozen=True)
class Rounds:
    """How many: at least `least`, of which `done` there are already, and more while they end within `seconds`."""

    seed: int
    done: int
    least: int
    seconds: float


def rounds(
    checkpoint: str, cells: Sequence[Cell], device: torch.device, threads: int, batches: Sequence[int], plan: Rounds
) -> Iterator[Begun | Failed | Round]:
    """Every cell and all work timed apart at each batch, once warm and then once a round; see bench.measure."""
    bench = Bench(checkpoint, cells, device, threads)
    names = [(name, batch) for name in (*bench.samplers, *bench.checkpoint.apart) for batch in batches]
    trials: dict[Name, Trajectory | Apart] = {}
    broken: set[str] = set()
    for number in _numbers(plan):
        took = []
        for name in order(names, plan.seed, number):
            if name[0] in broken:
                continue
            yield Begun(name)
            try:
                if number == WARM_UP:
                    trials[name] = bench.warm(name)
                else:
                    took.append({"name": name[0], "batch": name[1]} | trials[name].run(number))
            except Exception as error:  # whatever one cell does, the others are worth having
                broken.add(name[0])
                yield Failed(name, cause_of(error), "".join(traceback.format_exception(error)))
        if number != WARM_UP:
            yield Round(took, clocks(device))


def order(names: Sequence[Name], seed: int, number: int) -> list[Name]:
    """The trials of a round, shuffled anew for each: drift within a round favours none for long."""
    return [names[k] for k in np.random.default_rng([seed, number + 1]).permutation(len(names))]


def _numbers(plan: Rounds) -> Iterator[int]:
    """The warm-up, then the rounds that are left, by the time that those before took."""
    yield WARM_UP
    number, begin, longest = plan.done, time.perf_counter(), 0.0
    while number < plan.least or (number < MOST and time.perf_counter() - begin + longest < plan.seconds):
        started = time.perf_counter()
        yield number
        number, longest = number + 1, max(longest, time.perf_counter() - started)
