"""From a sweep's definition to a job: everything checked before anything is written, and an estimate of its time."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from bench.cell import Draws, Sampler
from bench.cells import Subjects, cells
from bench.checkpoints import Checkpoint, Task, load
from bench.environment import environment
from bench.errors import UsageError
from bench.executors import Engine, How
from bench.executors.drive import Drive, Failure, OnOutcome
from bench.log import RunLog
from bench.metrics import Context, Metric, make_metric, numbers_of
from bench.metrics.reference import source_of
from bench.metrics.threads import one_thread
from bench.pngs import exporter
from bench.sealed import CorruptError
from bench.spec import Cell, Sweep, Window
from bench.stopping import Stop
from bench.store import Store
from bench.worker import Costs, Outcome, Place, Shared, Worker
from solvers import did_you_mean

AROUND, APART = 0.05, 0.07  # seconds a cell: features, distances and the disk; a process to take its memory in


def _deaf(cell: Cell, outcome: Outcome) -> None:
    """For sweeps that nobody watches."""


@dataclass(frozen=True)
class Job:
    """A checked sweep: its metrics for each seed and task, its cells, and a line for each budget that cannot be spent.

    `batch` is how many samples a chunk has; no number depends on it.
    """

    sweep: Sweep
    subjects: Subjects
    store: Store
    device: torch.device
    batch: int
    metrics: dict[tuple[int, Task], dict[str, Metric]]
    cells: list[Cell]
    skipped: list[str]
    how: How

    @property
    def checkpoint(self) -> Checkpoint:
        return self.subjects.checkpoint

    @property
    def definition(self) -> dict[str, Any]:
        """The sweep with nothing left to defaults, and the keys of its cells: what belongs to its results."""
        keys = {cell.key: [cell.solver, cell.nfe] for cell in self.cells}
        return self.sweep.definition(self.checkpoint) | {"against": list(self.cells[0].against), "cells": keys}

    @property
    def warnings(self) -> list[str]:
        """One line for each reason to doubt a number of this sweep."""
        return [line for m in next(iter(self.metrics.values())).values() for line in m.warnings(self.sweep.samples)]

    @property
    def pending(self) -> list[Cell]:
        return [cell for cell in self.cells if not self.store.has(cell.key)]

    @property
    def unmeasured(self) -> list[Cell]:
        """Cells whose costs are wanted and not known, among those to come too."""
        return [cell for cell in self.cells if self.sweep.latency and not self.store.measured(cell.key)]

    def calls(self) -> int:
        """Network evaluations of single samples still to make, those of measuring apart."""
        return sum(cell.expected_nfe * cell.samples for cell in self.pending)

    def estimate(self) -> float:
        """Seconds the pending cells will take, from a few network calls timed now and the measured cost of a cell."""
        if not (left := self.pending or self.unmeasured):
            return 0.0
        sampler = Sampler(left[0], self.subjects.of(left[0]), self.device)
        at, chunk = left[0].plan.times[0], min(self.batch, self.sweep.samples)
        one, many = (_seconds_a_call(sampler, count, at) for count in (1, chunk))
        sampling = self.calls() * many / chunk + AROUND * len(self.pending)
        return sampling + self._measuring(one, many / chunk)

    def _measuring(self, one: float, each: float) -> float:
        """Seconds of measuring, where a call takes `one` at batch 1 and `each` a sample at a large one."""
        setting, calls = self.sweep.latency, sum(cell.expected_nfe for cell in self.unmeasured)
        if setting is None or not calls:
            return 0.0
        large = max(one, each * setting.max_batch) if setting.max_batch > 1 else 0.0
        rounds = 2 * calls * (setting.rounds + 0.5) * (one + large)  # half a pair to warm up
        return APART * len(self.unmeasured) + max(rounds, setting.seconds * len(self.unmeasured))

    @cached_property
    def log(self) -> RunLog:
        return RunLog(self.store.folder)

    @cached_property
    def engine(self) -> Engine:
        """What does the work, started when it is first needed; raises UsageError where it cannot be."""
        return self.how.start(lambda: Worker(self.place, self.shared), self.place)

    @cached_property
    def shared(self) -> Shared:
        """What the workers of this process have in common."""
        return Shared(self.subjects, self.metrics, Draws.beside(self.device))

    @property
    def place(self) -> Place:
        sweep, how = self.sweep, self.how
        weights = Path(sweep.inception_weights) if sweep.inception_weights else None
        return Place(
            sweep.checkpoint, sweep.metrics_on(self.checkpoint), sweep.reference, weights, self.store.folder,
            str(self.device), self.batch, how.keep, how.png,
        )  # fmt: skip

    def open(self) -> list[CorruptError]:
        """Make the results folder this sweep's, with what is damaged in it set aside, which is returned.

        Raises UsageError when it is another's or cannot be written.
        """
        damaged = self.store.open(self.definition)
        for error in damaged:
            self.log.write("set_aside", path=error.path, why=error.why)
        return damaged

    def run(self, command: str, on_outcome: OnOutcome = _deaf, stop: Stop | None = None) -> list[Failure]:
        """Run the pending cells into the opened folder, noting the command; returns those that failed.

        `on_outcome` hears of work as it is done.  Raises Interrupted, once what was begun is kept.
        """
        pending = self.pending
        if pending or self.unmeasured:
            when = datetime.now(UTC).isoformat(timespec="seconds")
            self.store.log_run({"command": command, "started": when, "environment": environment(self.device)})
        about = {"engine": self.how.engine, "workers": self.engine.slots if pending else 0, "command": command}
        self.log.write("sweep_started", cells=len(self.cells), pending=len(pending), **about)
        drive = self._drive(on_outcome, stop)
        with one_thread():  # a worker has one: sums that several share round differently for each number of them
            drive.run(pending)
        return drive.failures

    def measure(self, on_step: Callable[[str], None], stop: Stop | None = None) -> list[Failure]:
        """Measure the costs of cells that have samples and no measurement, in one session; returns what failed.

        Raises Interrupted, once what was measured is kept.
        """
        drive = self._drive(_deaf, stop)
        setting = self.sweep.latency
        if setting is None or not self._measurable():
            return drive.failures

        def step(text: str) -> None:
            drive.stop.check()
            on_step(text)

        def costs() -> Costs | None:
            cells = tuple(self._measurable())
            return Costs(cells, setting, self.sweep.seed[0]) if cells else None

        self.shared.on_step = step
        drive.measure(costs)
        return drive.failures

    def start(self) -> None:
        """Have the engine ready, unless there is nothing to do; raises UsageError where it cannot be started."""
        if self.pending or self.unmeasured:
            assert self.engine

    def close(self) -> None:
        """Give back what an engine holds."""
        if "engine" in vars(self):
            self.engine.close()

    def _measurable(self) -> list[Cell]:
        return [cell for cell in self.unmeasured if self.store.has(cell.key)]

    def _drive(self, on_outcome: OnOutcome, stop: Stop | None) -> Drive:
        return Drive(self.store, self.engine, self.batch, self.log, stop or Stop(), on_outcome, self.how.timeout)


def prepare(sweep: Sweep, out: Path, device: str, batch: int | None = None, how: How | None = None) -> Job:
    """Check a sweep against its checkpoint, solvers, metrics, device and results folder, writing nothing.

    Raises UsageError and solvers.UnknownNameError.
    """
    on = find_device(device)
    if batch is not None and batch < 1:
        raise UsageError(f"--batch {batch}: give at least 1 sample a chunk")
    subjects, store = Subjects(load(sweep.checkpoint)), Store(out)
    checkpoint, weights = subjects.checkpoint, Path(sweep.inception_weights) if sweep.inception_weights else None
    for mode in sweep.modes:
        mode.check(on, checkpoint.network)
    for task in sweep.tasks:
        checkpoint.check(task)
    context = Context(checkpoint, sweep.seed[0], sweep.tasks[0], store.cache, on, sweep.reference, weights)
    first = _metrics(sweep, context)
    threads, cores = sweep.latency.threads if sweep.latency else None, os.cpu_count() or 1
    if threads and threads > cores:
        raise UsageError(f"latency: threads = {threads}: this machine has {cores} cores; give as many or fewer")
    for text in sweep.reference:
        source_of(context, text)  # one that no metric asks for must not be a typing error
    for metric in first.values():
        metric.check(sweep.samples)
    _check_window(sweep.quality, numbers_of(first.values()))
    against = tuple(f"{text}: {metric.identity}" for text, metric in first.items())
    found, skipped = cells(sweep, subjects, against)
    wanted = dict.fromkeys((cell.seed, cell.task) for cell in found)
    metrics = {(seed, task): _metrics(sweep, replace(context, seed=seed, task=task)) for seed, task in wanted}
    how = how or How()
    if how.png:
        exporter(how.png, checkpoint)
    job = Job(sweep, subjects, store, on, batch or checkpoint.batch, metrics, found, skipped, how)
    store.check(job.definition)
    return job


def _metrics(sweep: Sweep, context: Context) -> dict[str, Metric]:
    """The sweep's metrics by name, for a seed and task."""
    return {text: make_metric(text, context) for text in sweep.metrics_on(context.checkpoint)}


def _seconds_a_call(sampler: Sampler, count: int, t: float) -> float:
    x_T, cond = sampler.inputs(0, count)
    times = []
    for _ in range(4):
        begin = time.perf_counter()
        sampler.denoiser(x_T, t, None, cond)
        times.append(time.perf_counter() - begin)
    return min(times)


def _check_window(window: Window | None, numbers: Sequence[str]) -> None:
    """Raises UnknownNameError for a window on a number that the sweep does not compute."""
    if window and window.metric not in numbers:
        raise did_you_mean("metric of the quality window", window.metric, numbers)


def find_device(name: str) -> torch.device:
    """The device called `name`; "auto" is a GPU where there is one.  Raises UsageError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise UsageError(f"--device {name}: give auto, cpu, cuda or cuda:N")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; give cpu")
    return torch.device(name)
