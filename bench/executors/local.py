"""Cells one after another in this process, then their costs in processes of their own."""

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from bench.causes import cause_of
from bench.cell import run
from bench.cells import Subjects
from bench.checkpoints import Task
from bench.measure.session import Measuring
from bench.metrics import Chunk, Metric
from bench.mode import Mode
from bench.spec import Cell
from bench.store import Store


@dataclass(frozen=True)
class Failure:
    """What did not finish, and why in one line."""

    label: str
    cause: str


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


def execute(
    pending: list[Cell],
    metrics: Mapping[tuple[int, Task], dict[str, Metric]],
    networks: Networks,
    store: Store,
    batch: int,
    watchers: Sequence[Callable[[Cell, Chunk], None]],
) -> list[Failure]:
    """Run every pending cell into the store; a failing one is recorded with its cause and the rest goes on.

    `metrics` are by name, for each seed and task; `watchers` see every chunk of samples.
    """
    failures = []
    for cell in pending:

        def on_chunk(chunk: Chunk, cell: Cell = cell) -> None:
            for watcher in watchers:
                watcher(cell, chunk)

        try:
            subject, network = networks.subjects.of(cell), networks.of(cell)
            of_cell = metrics[cell.seed, cell.task]
            record, arrays = run(cell, subject, of_cell, networks.device, batch, on_chunk, network)
            store.put(cell.key, record, arrays)
        except Exception as error:  # whatever one cell does, the others are worth having
            failures.append(Failure(cell.label, cause_of(error)))
            store.put_failure(
                cell.key, _attempt(cell, cause_of(error), "".join(traceback.format_exception(error)), "sampling")
            )
    return failures


def measure(measuring: Measuring) -> list[Failure]:
    """Run a measuring session; what failed in it is recorded beside cells that failed."""
    cells, failures = {cell.key: cell for cell in measuring.cells}, []
    for name, fault in measuring.run().items():
        label = cells[name].label if name in cells else name
        failures.append(Failure(label, f"measuring: {fault['cause']}"))
        if name in cells:
            attempt = _attempt(cells[name], fault["cause"], fault["traceback"], "measuring")
            measuring.store.put_failure(name, attempt)
    return failures


def _attempt(cell: Cell, cause: str, traceback: str, what: str) -> dict[str, Any]:
    return {
        "cell": cell.to_dict(),
        "what": what,
        "cause": cause,
        "traceback": traceback,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }
