"""Where a sweep's time goes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

from bench.measure.clock import Mark, between, mark, synchronise

Part = Literal["network", "solver", "features", "distances", "io", "startup"]


@dataclass(frozen=True)
class Spent:
    """Seconds of one process: in the network, in the sampler around it, in features of samples and references, in
    numbers from features, on files, and on making things ready."""

    network: float = 0.0
    solver: float = 0.0
    features: float = 0.0
    distances: float = 0.0
    io: float = 0.0
    startup: float = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: "Spent") -> "Spent":
        return Spent(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def total(self) -> float:
        return sum(astuple(self))

    @property
    def sampling(self) -> float:
        """All that a cell takes once its network is ready."""
        return self.total - self.startup

    def plus(self, part: Part, seconds: float) -> "Spent":
        return replace(self, **{part: getattr(self, part) + seconds})

    def rows(self) -> Iterator[tuple[str, float]]:
        """Each part's name and seconds."""
        for field in fields(self):
            yield field.name, getattr(self, field.name)


class Clock:
    """Adds up what a process spends on a device; `spent` may be read, and set anew, at any time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.spent = Spent()
        self._marks: list[tuple[Mark, Mark]] = []

    @contextmanager
    def on(self, part: Part) -> Iterator[None]:
        """What runs within counts for `part`; the network's share of a solver's time for the network."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            if self._marks:
                synchronise(self.device)
            seconds = time.perf_counter() - begin
            network = sum(between(*pair) for pair in self._marks) / 1e3
            self._marks.clear()
            self.spent = self.spent.plus(part, seconds - network).plus("network", network)

    def timed(self, network: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The network, with a mark before and behind each of its runs."""

        def run(x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
            begin = mark(self.device)
            out = network(x, t, **cond)
            self._marks.append((begin, mark(self.device)))
            return out

        return run
