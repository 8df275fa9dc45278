"""What a metric is: features taken from chunks of samples, then numbers with their errors from all features."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.checkpoints.base import Checkpoint, Guide, quantise

Features = NDArray[Any]


@dataclass(frozen=True)
class Value:
    """One number: `n` samples behind it, its standard error, the family it may be compared within, its reference.

    `squares` are each sample's part in it, where it is the root of their mean: with them differences are paired.
    """

    metric: str
    value: float
    se: float
    n: int
    family: str
    reference: Mapping[str, Any]
    squares: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        about = asdict(self) | {"squares": list(self.squares)}
        return {k: v for k, v in about.items() if k != "squares" or v}


@dataclass(frozen=True)
class Chunk:
    """Samples start .. start + len(x) - 1 of a cell: states x (B, *shape) and, for images, their bytes."""

    start: int
    x: Tensor
    images: NDArray[np.uint8] | None

    @classmethod
    def of(cls, start: int, x: Tensor, kind: str) -> "Chunk":
        return cls(start, x, quantise(x) if kind == "image" else None)


@dataclass(frozen=True)
class Context:
    """What a metric may need beyond samples: the checkpoint, the start of the trajectories, a folder to cache in.

    `classes` are those the samples are of; None stands for all.
    """

    checkpoint: Checkpoint
    seed: int
    guide: Guide
    cache: Path
    device: torch.device
    classes: tuple[int, ...] | None = None


class Metric(ABC):
    """One quantity; `name` is its registry name, `needs` says in a few words what it needs."""

    name: str
    needs: str
    of_ode = False  # whether it means nothing for a sampler that draws noise on its way

    def __init__(self, context: Context) -> None:
        """Raises UsageError when the checkpoint cannot give what the metric needs."""
        self.context = context

    @abstractmethod
    def extract(self, chunk: Chunk) -> Features:
        """Features of a chunk, (n, ...) with n <= B; those of all chunks are joined along the first axis."""

    @abstractmethod
    def evaluate(self, features: Features, plan_times: tuple[float, ...]) -> list[Value]:
        """The metric's numbers from all features of a cell whose plan runs over these times."""
