"""What a training step looks at: clean samples, what the network is told of them, and random numbers.

Every number is a pure function of (seed, stream, index of the sample over the whole training), so that a training that
was interrupted, or is spread over devices, draws what it would have drawn.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from solvers import noise
from solvers.schedule import Array

CPU = torch.device("cpu")
TRAINING = 2**34  # added to streams: what students are trained on is never what they are judged on
DATA, CONDITION = 0, 1  # streams of data; those of a loss begin at LOSS
LOSS = 16
SHARED, TURN = 2**16, 2**17  # added to the streams of what a whole step shares; of a step's further turns


@dataclass(frozen=True)
class Draws:
    """The random numbers of samples first .. first + count - 1 of a training, in turn `turn` of step `step`."""

    seed: int
    step: int
    first: int
    count: int
    device: torch.device = CPU
    turn: int = 0

    def _stream(self, stream: int) -> int:
        return TRAINING + TURN * self.turn + stream

    def normal(self, stream: int, shape: tuple[int, ...]) -> Tensor:
        """Standard normal, (count, *shape), float32 on the device."""
        z = torch.from_numpy(noise.normal(self.seed, self._stream(stream), self.first, self.count, shape))
        return z.to(self.device, torch.float32)

    def uniform(self, stream: int) -> Array:
        """In (0, 1), (count,), float64."""
        return noise.uniform(self.seed, self._stream(stream), self.first, self.count, 1)[:, 0]

    def integers(self, stream: int, below: int) -> Array:
        """Whole numbers from 0 to below - 1, (count,)."""
        return (self.uniform(stream) * below).astype(int)

    def shared(self, stream: int) -> float:
        """One number in (0, 1) for all samples of the step, on all devices."""
        return float(noise.uniform(self.seed, self._stream(SHARED + stream), self.step, 1, 1)[0, 0])


Data = Callable[[Draws], tuple[Tensor, dict[str, Tensor]]]  # clean samples (count, *shape), their conditions
Conditions = Callable[[Draws], dict[str, Tensor]]  # conditions alone


@dataclass(frozen=True)
class Batch:
    """Clean samples x0 (B, *shape), the conditions that belong to them, and the step's random numbers."""

    x0: Tensor
    cond: Mapping[str, Tensor]
    draws: Draws

    def noise(self, stream: int) -> Tensor:
        """Standard normal, like x0."""
        return self.draws.normal(stream, tuple(self.x0.shape[1:])).to(self.x0.dtype)
