"""Cells one after another in this process."""

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import torch

from bench.cell import make_metrics, run
from bench.checkpoints import Checkpoint
from bench.measure import measure_apart
from bench.spec import Cell, Sweep
from bench.store import Store

CAUSES = {FloatingPointError: "not finite", MemoryError: "out of memory", torch.OutOfMemoryError: "out of memory"}


@dataclass(frozen=True)
class Failure:
    """A cell that did not finish, and why in one line."""

    cell: Cell
    cause: str


def execute(
    pending: list[Cell],
    sweep: Sweep,
    checkpoint: Checkpoint,
    store: Store,
    device: torch.device,
    batch: int,
    on_chunk: Callable[[Cell, int], None],
) -> list[Failure]:
    """Run every pending cell into the store; a failing one is recorded with its cause and the rest goes on."""
    failures = []
    metrics = make_metrics(pending[0], checkpoint, store, device) if pending else {}
    for cell in pending:
        begin = time.perf_counter()
        try:
            record, arrays = run(cell, checkpoint, metrics, device, batch, partial(on_chunk, cell))
            measured = measure_apart(sweep.checkpoint, cell, device) if sweep.latency else {}
            store.put(cell.key, record | measured | {"seconds": time.perf_counter() - begin}, arrays)
        except Exception as error:  # whatever one cell does, the others are worth having
            failures.append(Failure(cell, _cause(error)))
            store.put_failure(cell.key, _attempt(cell, error))
    return failures


def _cause(error: Exception) -> str:
    kind = next((cause for type_, cause in CAUSES.items() if isinstance(error, type_)), type(error).__name__)
    return f"{kind}: {error}"


def _attempt(cell: Cell, error: Exception) -> dict[str, Any]:
    return {
        "cell": cell.to_dict(),
        "cause": _cause(error),
        "traceback": "".join(traceback.format_exception(error)),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }
