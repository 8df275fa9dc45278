"""What metrics share that compare samples' features with those of the reference."""

import math
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from bench.errors import UsageError
from bench.metrics.base import Context, Features, Metric
from bench.metrics.features import usual
from bench.metrics.reference import Need, reference

PAIRS = 2**24  # looked at together: 128 MiB of float64


class Comparison(Metric):
    """A metric of features against those of the reference; without a layer's name, in the checkpoint's usual one."""

    asks_for: ClassVar[Need] = "features"  # of its reference

    def __init__(self, context: Context, features: str = "") -> None:
        super().__init__(context, features or usual(context))
        self.reference = reference(context, self.extractor, self.features, self.asks_for)

    @property
    def identity(self) -> str:
        return f"{super().identity} against {self.reference.digest}"

    def prepare(self, features: Features, plan_times: tuple[float, ...]) -> None:
        self.reference.prepare()

    def double(self, features: Features) -> Tensor:
        """Features in float64 where distances are computed."""
        return torch.as_tensor(features, dtype=torch.float64, device=self.context.device)

    def both(self, features: Features) -> tuple[Tensor, Tensor]:
        """Samples (N, d) and reference (M, d), about the reference's mean so that their distances round little."""
        y = self.double(self.reference.features)
        centre = y.mean(0)
        return self.double(features) - centre, y - centre


def require(metric: str, option: str, value: float, least: float) -> None:
    """Raises UsageError for an option that is too small, or not finite."""
    if not least <= value < math.inf:
        raise UsageError(f"metric {metric!r}: {option}={value:g}: give {least:g} or more")


def squared_distances(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Between some rows of x and all of y, (m, M), one block after another, with the rows it is about."""
    rows, yy = max(1, PAIRS // len(y)), (y**2).sum(1)
    for start in range(0, len(x), rows):
        z = x[start : start + rows]
        block = torch.addmm(yy, z, y.T, alpha=-2).add_((z**2).sum(1, keepdim=True))
        yield slice(start, start + len(z)), block.clamp_(min=0)
