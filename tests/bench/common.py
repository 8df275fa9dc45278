"""What tests of cells share."""

import torch

from bench.checkpoints import Checkpoint
from bench.metrics import Context, Metric, make_metric
from bench.spec import Cell
from bench.store import Store


def make_metrics(cell: Cell, checkpoint: Checkpoint, store: Store, device: torch.device) -> dict[str, Metric]:
    """The cell's metrics, ready."""
    context = Context(checkpoint, cell.seed, cell.task, store.cache, device)
    return {name: make_metric(name, context) for name in cell.metrics}
