"""Coefficients of plans: numbers, or arrays of a sample's shape where a method learned one number a pixel."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solvers.schedule import Array


@dataclass(frozen=True, eq=False)
class Pixelwise:
    """One number a pixel: `values` (*shape), float64, read-only, equal by value."""

    values: Array

    def __post_init__(self) -> None:
        values = np.array(self.values, np.float64)
        values.setflags(write=False)
        object.__setattr__(self, "values", values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pixelwise) and np.array_equal(self.values, other.values)

    def __hash__(self) -> int:
        return hash(self.values.tobytes())

    def __mul__(self, c: float) -> "Pixelwise":
        return Pixelwise(self.values * c)

    def __format__(self, spec: str) -> str:
        """Its mean, since a table has room for one number."""
        return f"{float(self.values.mean()):{spec}}~"

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        return torch.from_numpy(self.values.copy()).to(device, dtype)


Coefficient = float | Pixelwise


def finite(c: Coefficient) -> bool:
    return bool(np.isfinite(c.values).all()) if isinstance(c, Pixelwise) else isfinite(c)


def number(c: Any) -> Any:
    """What a symbol may be multiplied by: a float, an array of a sample's shape, a tensor to be differentiated."""
    return c if isinstance(c, np.ndarray | Tensor) else float(c)


def coefficient(c: Any) -> Any:
    """The number as an instruction keeps it; None for 0, whose term is dropped."""
    if isinstance(c, Tensor):
        return c
    if isinstance(c, np.ndarray) and c.ndim:
        return Pixelwise(c) if c.any() else None
    return float(c) or None


def to_json(c: Coefficient) -> Any:
    return c.values.tolist() if isinstance(c, Pixelwise) else c


def from_json(c: Any) -> Coefficient:
    return Pixelwise(np.array(c)) if isinstance(c, Sequence) else c
