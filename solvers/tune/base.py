"""What a tuner is: a function from a Problem and a budget to a Finding, which takes notes so that it can go on.

A tuner sees the checkpoint through a counting denoiser, on noise and classes that no evaluation uses.  Everything it
does follows from the seed.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from solvers.learned import Cost
from solvers.model import Cond, Denoiser
from solvers.plan import Option
from solvers.schedule import Schedule
from solvers.tracer import resolve, summary


@dataclass(frozen=True)
class Problem:
    """A checkpoint as a tuner sees it: `start(first, count, t)` is x_T (count, *shape) and conditions at time t.

    `denoiser` is guided at the scale `guidance`, and its counters are the cost.  Samples of one `seed` are numbered,
    and number i is the same in any batch.  `metric`, a name and a function of final states (B, *shape), is there when
    the user wants it to be searched for in place of the truncation error.
    """

    denoiser: Denoiser
    guidance: float
    shape: tuple[int, ...]
    seed: int
    start: Callable[[int, int, float], tuple[Tensor, Cond]]
    metric: tuple[str, Callable[[Tensor], float]] | None = None

    @property
    def schedule(self) -> Schedule:
        return self.denoiser.schedule

    @property
    def cost(self) -> Cost:
        """What has been spent so far."""
        return Cost(self.denoiser.passed, self.denoiser.tangents, self.denoiser.backwards)


class Notes(Protocol):
    """Where a tuner keeps its state, so that it goes on from there; `read` is None at the beginning.

    What it writes is made of dictionaries, lists, numbers, words and tensors; the cost so far is kept along with it.
    """

    def read(self) -> dict[str, Any] | None: ...

    def write(self, state: dict[str, Any]) -> None: ...


class NoNotes:
    """Notes of one who is not interrupted."""

    def read(self) -> None:
        return None

    def write(self, state: dict[str, Any]) -> None:
        return None


@dataclass(frozen=True)
class Finding:
    """What a tuner found: `values` as JSON, `arrays` in float64, the solver it set out from, as one would write it.

    `curve` says how the error fell: (calls spent, error then), the last one being what was found.
    """

    base: str
    values: Mapping[str, Any]
    curve: tuple[tuple[int, float], ...]
    objective: str = "truncation error"
    arrays: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


Run = Callable[..., Finding]


@dataclass(frozen=True)
class Tuner:
    """How a method learns; `any_budget` says whether what it learns serves every budget, and `run` gets nfe = None."""

    name: str
    run: Run
    any_budget: bool = False

    @property
    def defaults(self) -> dict[str, Option]:
        """Its settings, which follow the problem, the budget and the notes."""
        return {p.name: p.default for p in list(inspect.signature(self.run).parameters.values())[3:]}

    @property
    def summary(self) -> str:
        return summary(inspect.getdoc(inspect.getmodule(self.run)))

    def resolve(self, settings: Mapping[str, Option]) -> dict[str, Option]:
        """All settings with their values; raises ValueError for one it lacks or a value of another type."""
        return resolve(f"tuning {self.name}", self.defaults, settings)

    def tune(
        self, problem: Problem, nfe: int | None, notes: Notes, settings: Mapping[str, Option] = MappingProxyType({})
    ) -> Finding:
        """Raises ValueError for settings or a budget that it cannot take."""
        return self.run(problem, nfe, notes, **self.resolve(settings))


def tuner(name: str, *, any_budget: bool = False) -> Callable[[Run], Tuner]:
    """Declare how solver `name` learns: f(problem, nfe, notes, setting=default, ...) -> Finding."""
    return lambda run: Tuner(name, run, any_budget)
