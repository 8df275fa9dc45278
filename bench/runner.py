"""From a sweep's definition to a job: everything checked before anything is written, and an estimate of its time."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from bench.cell import Sampler
from bench.checkpoints import Checkpoint, load
from bench.environment import environment
from bench.errors import UsageError
from bench.executors.local import Failure, execute
from bench.measure import BATCHES, ROUNDS
from bench.metrics import METRICS, Context
from bench.spec import Cell, Sweep, cells
from bench.store import Store

BATCH = 500  # samples a chunk


@dataclass(frozen=True)
class Job:
    """A checked sweep: its cells, those still to run, and one line for each budget that a solver cannot spend."""

    sweep: Sweep
    checkpoint: Checkpoint
    store: Store
    device: torch.device
    cells: list[Cell]
    skipped: list[str]

    @property
    def definition(self) -> dict[str, Any]:
        """The sweep with nothing left to defaults, and the keys of its cells: what belongs to its results."""
        keys = {cell.key: [cell.solver, cell.nfe] for cell in self.cells}
        return self.sweep.definition(self.checkpoint) | {"cells": keys}

    @property
    def pending(self) -> list[Cell]:
        return [cell for cell in self.cells if not self.store.has(cell.key)]

    def calls(self) -> int:
        """Network evaluations of single samples still to make, latency rounds included."""
        return sum(cell.expected_nfe * (cell.samples + self._timed_samples()) for cell in self.pending)

    def _timed_samples(self) -> int:
        return 2 * ROUNDS * sum(BATCHES) if self.sweep.latency else 0

    def estimate(self) -> float:
        """Seconds the pending cells will take, from a few network calls timed now and the measured cost of a cell."""
        if not self.pending:
            return 0.0
        sampler = Sampler(self.pending[0], self.checkpoint, self.device)
        x_T, cond = sampler.inputs(0, min(BATCH, self.sweep.samples))
        times = []
        for _ in range(4):
            begin = time.perf_counter()
            sampler.denoiser(x_T, self.pending[0].plan.times[0], None, cond)
            times.append(time.perf_counter() - begin)
        around = 0.6 if self.sweep.latency else 0.1  # features, distances, a process, the disk: seconds a cell
        return self.calls() * min(times) / len(x_T) + around * len(self.pending)

    def open(self) -> None:
        """Make the results folder this sweep's; raises UsageError when it is another's or cannot be written."""
        self.store.open(self.definition)

    def run(self, command: str, on_chunk: Callable[[Cell, int], None]) -> list[Failure]:
        """Run the pending cells into the opened folder, noting the command; returns those that failed."""
        if self.pending:
            when = datetime.now(UTC).isoformat(timespec="seconds")
            self.store.log_run({"command": command, "started": when, "environment": environment(self.device)})
        return execute(self.pending, self.sweep, self.checkpoint, self.store, self.device, BATCH, on_chunk)


def prepare(sweep: Sweep, out: Path, device: str) -> Job:
    """Check a sweep against its checkpoint, solvers, metrics, device and results folder, writing nothing.

    Raises UsageError and solvers.UnknownNameError.
    """
    on = find_device(device)
    checkpoint = load(sweep.checkpoint)
    found, skipped = cells(sweep, checkpoint)
    store = Store(out)
    context = Context(checkpoint, sweep.seed, sweep.guide, store.cache, on, sweep.classes)
    for name in found[0].metrics:
        METRICS.get(name)(context)
    job = Job(sweep, checkpoint, store, on, found, skipped)
    store.check(job.definition)
    return job


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
