"""Cells one after another in this process, then their costs in processes of their own."""

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from bench.causes import cause_of
from bench.cell import run
from bench.checkpoints import Checkpoint
from bench.measure.session import Measuring
from bench.metrics import Chunk, Metric
from bench.spec import Cell
from bench.store import Store


@dataclass(frozen=True)
class Failure:
    """What did not finish, and why in one line."""

    label: str
    cause: str


def execute(
    pending: list[Cell],
    metrics: Mapping[int, dict[str, Metric]],
    checkpoint: Checkpoint,
    store: Store,
    device: torch.device,
    batch: int,
    watchers: Sequence[Callable[[Cell, Chunk], None]],
) -> list[Failure]:
    """Run every pending cell into the store; a failing one is recorded with its cause and the rest goes on.

    `metrics` are by name, for each seed; `watchers` see every chunk of samples.
    """
    failures = []
    for cell in pending:

        def on_chunk(chunk: Chunk, cell: Cell = cell) -> None:
            for watcher in watchers:
                watcher(cell, chunk)

        try:
            record, arrays = run(cell, checkpoint, metrics[cell.seed], device, batch, on_chunk)
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
