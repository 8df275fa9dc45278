"""What tests of cells share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bench.checkpoints import Checkpoint
from bench.metrics import Context, Metric, make_metric
from bench.spec import Cell, Sweep
from bench.store import Store
from bench.sweepfile import read_sweeps


def make_metrics(cell: Cell, checkpoint: Checkpoint, store: Store, device: torch.device) -> dict[str, Metric]:
    """The cell's metrics, ready."""
    context = Context(checkpoint, cell.seed, cell.task, store.cache, device)
    return {name: make_metric(name, context) for name in cell.metrics}


def read_sweep(path: Path | None, given: Mapping[str, Any]) -> Sweep:
    """The only sweep of a file, or the default one."""
    (sweep,) = read_sweeps(path, given)
    return sweep
