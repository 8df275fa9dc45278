"""What the tests with diffusers share: draws in order and the times of a plan's calls."""

from collections.abc import Callable

import torch
from torch import Tensor

import solvers
from solvers.plan import Evaluate


def call_times(plan: solvers.Plan) -> list[float]:
    return [i.t for i in plan.instructions if isinstance(i, Evaluate)]


class Draws:
    """The draws of one generator, in the order in which they are first asked for."""

    def __init__(self, shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype = torch.float64) -> None:
        self.fresh: Callable[[], Tensor] = lambda: torch.randn(shape, generator=generator, dtype=dtype)
        self.made: dict[int, Tensor] = {}

    def __call__(self, k: int) -> Tensor:
        if k not in self.made:
            self.made[k] = self.fresh()
        return self.made[k]


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
