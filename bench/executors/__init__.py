"""Engines that do a sweep's work: on this machine, by Ray, by Slurm; what they do is the same to the byte."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, get_args

import torch

from bench.errors import UsageError
from bench.executors.local import Local
from bench.keeping import Keep
from bench.worker import Outcome, Place, Work, Worker
from solvers import did_you_mean

ENGINES = {"local": None, "ray": "bench.executors.ray", "slurm": "bench.executors.slurm"}  # modules of what is optional


class Engine(Protocol):
    """Takes work and gives what it comes back with, in whatever order that ends.

    `slots` is how much it takes at a time, and `piece` how many samples are worth a piece of work of their own,
    though one has whole blocks.  A piece whose worker vanishes is done again.
    """

    slots: int
    piece: int

    def submit(self, work: Work, alone: bool = False) -> Future[Outcome]:
        """Have work done; `alone` with a whole device to itself."""

    def close(self) -> None:
        """Give back what it holds."""


@dataclass(frozen=True)
class How:
    """How a sweep is run, on which none of its numbers depends.

    `timeout` is the most seconds a cell may take, `address` that of a Ray cluster that runs already, `workers` how many
    work at a time, `slurm` what sbatch is told.
    """

    engine: str = "local"
    workers: int | None = None
    address: str | None = None
    slurm: Mapping[str, Any] = field(default_factory=dict)
    keep: Keep = "features"
    timeout: float | None = None
    png: Path | None = None

    def __post_init__(self) -> None:
        """Raises UsageError and UnknownNameError."""
        for name, value, known in (("engine", self.engine, list(ENGINES)), ("keep", self.keep, list(get_args(Keep)))):
            if value not in known:
                raise did_you_mean(name, value, known)
        if self.timeout is not None and not self.timeout > 0:
            raise UsageError(f"--timeout {self.timeout:g}: give more than 0 seconds")
        for option, value, engine in (("address", self.address, "ray"), ("slurm", self.slurm, "slurm")):
            if value and self.engine != engine:
                raise UsageError(f"--{option} is for --engine {engine}, not {self.engine}")
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"--workers {self.workers}: give 1 or more")

    def start(self, worker: Callable[[], Worker], place: Place) -> Engine:
        """The engine, ready to take work at the place, in this process by workers made here; raises UsageError."""
        kind = ENGINES[self.engine]
        if kind is None:
            return Local(worker, self._threads(place), None if self.timeout is None else place)
        return import_module(kind).start(self, place)  # type: ignore[no-any-return]

    def _threads(self, place: Place) -> int:
        """Workers of this machine: one for each thread that torch would use, unless they would share a GPU."""
        return self.workers or torch.get_num_threads() if torch.device(place.device).type == "cpu" else 1
