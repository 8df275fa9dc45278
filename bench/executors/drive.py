"""Cells through an engine: which are taken, cut into work, put together, and what becomes of those that fail."""

import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from bench.causes import cause_of
from bench.executors import Engine
from bench.files import no_room
from bench.log import RunLog
from bench.spec import Cell
from bench.spent import Spent
from bench.stopping import Stop
from bench.store import Store
from bench.worker import Costs, Failed, Outcome, Samples

MEASURING = "measuring"  # the claim of who does
OnOutcome = Callable[[Cell, Outcome], None]
PAUSE = 0.2  # seconds between looks at what others hold, and between looks for a signal


@dataclass(frozen=True)
class Failure:
    """What did not finish, and why in one line."""

    label: str
    cause: str


@dataclass
class Open:
    """A cell that this process has claimed: its work that is not done, what it spent so far, and the batch it was left
    with where memory did not suffice."""

    cell: Cell
    left: int
    spent: Spent = field(default_factory=Spent)
    batch: int | None = None
    failed: Failed | None = None


@dataclass
class Drive:
    """Runs cells; `on_outcome` hears of work as it is done, `seconds` is the most that a cell may take."""

    store: Store
    engine: Engine
    batch: int
    log: RunLog
    stop: Stop
    on_outcome: OnOutcome
    seconds: float | None = None
    failures: list[Failure] = field(default_factory=list)
    _open: dict[str, Open] = field(default_factory=dict)
    _ready: deque[Samples] = field(default_factory=deque)
    _running: dict[Future[Outcome], Samples] = field(default_factory=dict)

    def run(self, cells: Sequence[Cell]) -> None:
        """Have all of them done, by this process or by others that share the folder.

        Raises Interrupted, once what runs has ended, and OSError when the results folder takes no more.
        """
        left = list(cells)
        while left or self._ready or self._running:
            if self.stop.asked:
                self._ready.clear()
            while not self.stop.asked and len(self._running) < self.engine.slots and (self._ready or self._claim(left)):
                work = self._ready.popleft()
                self._running[self.engine.submit(replace(work, seconds=self._time_left(work)))] = work
            if not self._running:
                self.stop.check()
                time.sleep(PAUSE if left else 0)
                continue
            for future in wait(self._running, PAUSE, FIRST_COMPLETED).done:
                self._ended(self._running.pop(future), future)

    def _claim(self, left: list[Cell]) -> bool:
        """Take the next cell that no other process has, and cut it into work; False when there is none now."""
        for cell in list(left):
            if self.store.claims.take(cell.key):
                left.remove(cell)
                if not self.store.has(cell.key):
                    self._cut(cell)
                    return True
                self.store.claims.drop(cell.key)  # another one did it
        return False

    def _cut(self, cell: Cell) -> None:
        """Into pieces as large as the engine likes; the only one, or one more, makes the numbers."""
        size = max(1, round(self.engine.piece / self.batch)) * self.batch
        pieces = [(start, min(start + size, cell.samples)) for start in range(0, cell.samples, size)]
        self._open[cell.key] = Open(cell, len(pieces))
        for start, stop in pieces:
            self._ready.append(Samples(cell, start, stop, last=len(pieces) == 1))

    def _ended(self, work: Samples, future: Future[Outcome]) -> None:
        at, outcome = self._open[work.cell.key], _outcome(future, work.cell.key)
        at.left -= 1
        at.spent += outcome.spent
        self.on_outcome(work.cell, outcome)
        if outcome.made:
            seconds = round(outcome.spent.total, 6)
            self.log.write("block_done", key=work.cell.key, start=work.start, count=outcome.made, seconds=seconds)
        if outcome.batch and outcome.batch != at.batch:
            at.batch = outcome.batch
            self.log.write("out_of_memory", key=work.cell.key, label=work.cell.label, batch=outcome.batch)
        if outcome.failed and not at.failed:
            at.failed = outcome.failed[work.cell.key]
            at.left -= sum(other.cell is work.cell for other in self._ready)
            self._ready = deque(other for other in self._ready if other.cell is not work.cell)
        if at.left == 0:
            self._close(at, work)

    def _time_left(self, work: Samples) -> float | None:
        """Of the seconds that its cell may take."""
        return None if self.seconds is None else max(self.seconds - self._open[work.cell.key].spent.total, 0.0)

    def _close(self, at: Open, work: Samples) -> None:
        """Of a cell all of whose work has ended: put it together, or note that it is done or has failed."""
        if not at.failed and not work.last:
            at.left = 1
            self._ready.appendleft(Samples(at.cell, 0, at.cell.samples, last=True))
            return
        if at.failed:
            self._failed(at.cell.key, at.cell, at.failed, "sampling")
        else:
            seconds = {name: round(value, 6) for name, value in at.spent.rows()}
            self.log.write("cell_done", key=at.cell.key, label=at.cell.label, seconds=seconds)
        del self._open[at.cell.key]
        self.store.claims.drop(at.cell.key)

    def measure(self, find: Callable[[], Costs | None]) -> None:
        """Have costs measured, once no other process does that here; `find` says of which cells then, if of any.

        Raises Interrupted, once what was measured is kept.
        """
        while not self.store.claims.take(MEASURING):
            self.stop.check()
            time.sleep(PAUSE)
        try:
            if costs := find():
                self.log.write("measuring_started", cells=len(costs.cells))
                future = self.engine.submit(costs, alone=True)
                while not wait([future], PAUSE).done:
                    self.stop.check()
                outcome = _outcome(future, "the measuring session")
                self.log.write("measuring_ended", failed=len(outcome.failed))
                cells = {cell.key: cell for cell in costs.cells}
                for name, failed in outcome.failed.items():
                    self._failed(name, cells.get(name), failed, "measuring")
        finally:
            self.store.claims.drop(MEASURING)

    def _failed(self, name: str, cell: Cell | None, failed: Failed, what: str) -> None:
        """Note a failure, of a cell or of what is measured apart, which has no attempts."""
        label = cell.label if cell else name
        cause = failed.cause if what == "sampling" else f"{what}: {failed.cause}"
        self.failures.append(Failure(label, cause))
        self.log.write("cell_failed", key=name, label=label, cause=cause)
        if cell:
            when = datetime.now(UTC).isoformat(timespec="seconds")
            about = {"cell": cell.to_dict(), "what": what, "when": when}
            self.store.put_failure(name, about | {"cause": failed.cause, "traceback": failed.traceback})


def _outcome(future: Future[Outcome], name: str) -> Outcome:
    """What work came back with, or that its worker was lost; raises OSError when the results folder takes no more."""
    error = future.exception()
    if error is None:
        return future.result()
    if no_room(error) or not isinstance(error, Exception):
        raise error
    return Outcome(failed={name: Failed(cause_of(error), "".join(traceback.format_exception(error)))})
