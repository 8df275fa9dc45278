"""A process's part of a sweep: it takes work, which is plain data, and leaves what comes out in the store."""

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import Protocol

import torch
from torch import Tensor

from bench.causes import cause_of
from bench.cell import ABOUT, BATCH, Arrays, Draws, Sampler, applicable, blocks_of, finish, sample
from bench.cells import Subjects
from bench.checkpoints import Task, load
from bench.files import no_room
from bench.keeping import Keep, kept
from bench.measure.session import Measuring
from bench.metrics import Chunk, Context, Metric, make_metric
from bench.mode import Mode
from bench.pngs import exporter
from bench.sealed import CorruptError
from bench.spec import Cell, Latency
from bench.spent import Clock, Spent
from bench.stopping import limited
from bench.store import Block, Store


@dataclass(frozen=True)
class Place:
    """Where a sweep's work is done and what all of it needs: plain data, which travels to other machines.

    `folder` is the results folder, on a disk that all of them share, and `cwd` what relative names stand in; `batch` is
    how many samples a block has, `keep` what sidecars keep of features, `png` where every new sample becomes a file.
    """

    checkpoint: str
    metrics: tuple[str, ...]
    reference: tuple[str, ...]
    weights: Path | None
    folder: Path
    device: str
    batch: int
    keep: Keep = "features"
    png: Path | None = None
    cwd: Path = field(default_factory=Path.cwd)


@dataclass(frozen=True)
class Failed:
    """Why some work did not finish."""

    cause: str
    traceback: str


@dataclass(frozen=True)
class Outcome:
    """What work comes back with, beside what it left in the store: how many samples it made, what it spent, the batch
    it was left with where memory did not suffice for the usual one, and what failed, by the cell's key."""

    made: int = 0
    spent: Spent = field(default_factory=Spent)
    batch: int | None = None
    failed: Mapping[str, Failed] = field(default_factory=dict)


class Work(Protocol):
    """Something for a worker to do, which may be done twice without harm."""

    def run(self, worker: "Worker") -> Outcome: ...


@dataclass(frozen=True)
class Samples:
    """Make samples start .. stop - 1 of a cell, as far as they are not made; with `last`, its numbers of all of them.

    It fails when it takes longer than so many seconds.
    """

    cell: Cell
    start: int
    stop: int
    last: bool
    seconds: float | None = None

    def run(self, worker: "Worker") -> Outcome:
        """What fails is the outcome's; raises OSError when the results folder takes no more."""
        before, made, halved, failed = worker.clock.spent, 0, None, {}
        try:
            with limited(self.seconds):
                made = worker.make(self.cell, self.start, self.stop, self.last)
                halved = worker.halved
                if self.last:
                    worker.finish(self.cell)
        except Exception as error:  # whatever one cell does, the others are worth having
            if no_room(error):
                raise
            worker.drop()
            failed[self.cell.key] = Failed(cause_of(error), "".join(traceback.format_exception(error)))
        return Outcome(made, worker.clock.spent - before, halved, failed)


@dataclass(frozen=True)
class Costs:
    """Measure what cells cost, all of which have samples, in one session."""

    cells: tuple[Cell, ...]
    setting: Latency
    seed: int

    def run(self, worker: "Worker") -> Outcome:
        """What went wrong is by the cell's key, or the name of what is timed apart."""
        place = worker.place.checkpoint, self.cells, self.setting, self.seed, worker.device, worker.store
        faults = Measuring(*place, worker.shared.on_step).run()
        return Outcome(failed={name: Failed(fault["cause"], fault["traceback"]) for name, fault in faults.items()})


class Networks:
    """Networks made ready for cells, the last one kept: cells that share one follow each other."""

    def __init__(self, subjects: Subjects, device: torch.device) -> None:
        self.subjects, self.device = subjects, device
        self._made: tuple[tuple[str, Mode], Callable[..., Tensor]] | None = None

    def of(self, cell: Cell) -> Callable[..., Tensor]:
        """The network that makes a cell's samples, in its mode."""
        wanted = cell.digest, cell.mode
        if self._made is None or self._made[0] != wanted:
            self._made = None  # two of them may not fit
            self._made = wanted, cell.mode.ready(self.subjects.of(cell).network, self.device)
        return self._made[1]


@dataclass
class Current:
    """The cell that a worker is at, with the blocks it made itself."""

    cell: Cell
    sampler: Sampler
    metrics: Mapping[str, Metric]
    batch: int
    blocks: dict[Block, Arrays] = field(default_factory=dict)


@dataclass
class Shared:
    """What the workers of a process share: networks, metrics by seed and task, noise, and turns at computing numbers,
    since what a metric makes once, such as a reference, is better not made by two at a time; `on_step` hears what a
    measuring session is at."""

    subjects: Subjects
    metrics: dict[tuple[int, Task], dict[str, Metric]] = field(default_factory=dict)
    draws: Draws = field(default_factory=Draws)
    turn: Lock = field(default_factory=Lock)
    on_step: Callable[[str], None] = lambda text: None


class Worker:
    """Does a sweep's work bit by bit; what all of it needs is made when it is first needed, and kept."""

    def __init__(self, place: Place, shared: Shared | None = None) -> None:
        self.place, self.device, self.store = place, torch.device(place.device), Store(place.folder)
        self.clock = Clock(self.device)
        self.shared = shared or Shared(Subjects(load(place.checkpoint)), draws=Draws.beside(self.device))
        self.networks = Networks(self.shared.subjects, self.device)
        self._current: Current | None = None

    @property
    def halved(self) -> int | None:
        """The batch of the current cell, where memory did not suffice for the usual one."""
        batch = self._current.batch if self._current else self.place.batch
        return batch if batch < self.place.batch else None

    def make(self, cell: Cell, start: int, stop: int, last: bool = False) -> int:
        """Make and keep those blocks among samples start .. stop - 1 that are not there; how many samples they have.

        The one block of a cell whose numbers are the `last` that is left to make is written only if they fail.
        """
        blocks = blocks_of(stop, self.place.batch, start)
        todo = [block for block in blocks if not self.store.has_block(cell.key, block)]
        for block in todo:
            self._make(self._at(cell), block)
            if not (last and block == (0, cell.samples)):
                self._write(self._at(cell), block)
        return sum(count for _, count in todo)

    def finish(self, cell: Cell) -> None:
        """Turn all blocks of a cell into its record; what turns out to be damaged is made again."""
        at = self._at(cell)
        blocks = [self._block(at, block) for block in blocks_of(cell.samples, self.place.batch)]
        with self.shared.turn:
            record, arrays = finish(cell, at.metrics, blocks, self.device, self.clock)
        with self.clock.on("io"):
            self.store.put(cell.key, record, kept(arrays, self.place.keep))
            self.store.drop_blocks(cell.key)
        self._current = None

    def drop(self) -> None:
        """Forget the current cell, once its blocks are kept."""
        at, self._current = self._current, None
        for block in at.blocks if at else ():
            if not self.store.has_block(at.cell.key, block):
                self._write(at, block)

    def _at(self, cell: Cell) -> Current:
        """The cell made ready, unless it is so already."""
        if self._current is None or self._current.cell.key != cell.key:
            self._current = None
            with self.clock.on("startup"):
                network = self.networks.of(cell)
                if cell.mode.backend != "cuda_graph":  # whose replays run no Python that could be timed
                    network = self.clock.timed(network)
                subject = self.shared.subjects.of(cell)
                sampler = Sampler(cell, subject, self.device, network, self.clock, self.shared.draws)
                self._current = Current(cell, sampler, applicable(cell, self._metrics_of(cell)), self.place.batch)
        return self._current

    def _metrics_of(self, cell: Cell) -> Mapping[str, Metric]:
        known, wanted = self.shared.metrics, (cell.seed, cell.task)
        if wanted not in known:
            context = replace(self._context, seed=cell.seed, task=cell.task)
            known[wanted] = {text: make_metric(text, context) for text in self.place.metrics}
        return known[wanted]

    @cached_property
    def _context(self) -> Context:
        """Of no seed or task yet: what metrics of all of them share."""
        place, checkpoint = self.place, self.shared.subjects.checkpoint
        return Context(checkpoint, 0, Task(), self.store.cache, self.device, place.reference, place.weights)

    @cached_property
    def _export(self) -> Callable[[Cell, Chunk], None]:
        return exporter(self.place.png, self.shared.subjects.checkpoint) if self.place.png else lambda cell, chunk: None

    def _make(self, at: Current, block: Block) -> None:
        arrays = sample(at.sampler, at.metrics, *block, at.batch, partial(self._export, at.cell))
        at.batch, at.blocks[block] = int(arrays[ABOUT][BATCH]), arrays

    def _write(self, at: Current, block: Block) -> None:
        with self.clock.on("io"):
            self.store.put_block(at.cell.key, block, at.blocks[block])

    def _block(self, at: Current, block: Block) -> Arrays:
        if block not in at.blocks:
            try:
                with self.clock.on("io"):
                    at.blocks[block] = self.store.block(at.cell.key, block)
            except CorruptError as error:
                if error.path.exists():
                    self.store.set_aside(error.path)
                self._make(at, block)
        return at.blocks[block]
