"""What a distillation method is: options, a student to train, a loss for each turn, a sampler for what comes out.

Losses ask networks for a prediction of their choice, by `Denoiser.at_each`, so that no method knows what a network
predicts, on which schedule, or what it is told.
"""

import copy
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from distill.batch import Batch, Conditions, Data, Draws
from distill.student import FewStep
from distill.trainer import Recipe
from solvers.model import Denoiser
from solvers.schedule import Schedule


@dataclass(frozen=True)
class Teacher:
    """A trained network as students are made from it: behind a call counter, with the null of its guidance if any.

    `data` draws clean samples of shape `shape` with conditions, `conditions` those alone, for methods that begin with
    noise.  `time_embedding` and `features` name modules of the network, as `named_modules` does: that whose output
    embeds the time, and that whose output a discriminator looks at; empty where nobody said.
    """

    denoiser: Denoiser
    shape: tuple[int, ...]
    data: Data
    conditions: Conditions
    time_embedding: str = ""
    features: str = ""

    @property
    def network(self) -> nn.Module:
        assert isinstance(self.denoiser.network, nn.Module)
        return self.denoiser.network

    @property
    def schedule(self) -> Schedule:
        return self.denoiser.schedule


@dataclass(frozen=True)
class Players:
    """Who takes part in a loss: `student` is trained, `target` its slow copy (itself, where the method has none).

    `others` are a method's further networks by name, with the counters of calls that they belong to; `progress` is how
    much of the training is over, in [0, 1).
    """

    teacher: Teacher
    student: Denoiser
    target: Denoiser
    others: Mapping[str, Denoiser] = field(default_factory=dict)
    progress: float = 0.0


@dataclass(frozen=True)
class Method(ABC):
    """A distillation method; its options are its fields.

    `recipe` is what it is trained with unless told otherwise.  `target_decay` is of the target network's average, 0 for
    a target that is the student itself without gradient.  `rates` multiplies the recipe's learning rate of a player.
    """

    recipe: ClassVar[Recipe]
    target_decay: ClassVar[float] = 0.0
    rates: ClassVar[Mapping[str, float]] = {}

    def check(self, teacher: Teacher) -> None:  # noqa: B027  # most have nothing to refuse
        """Raises ValueError for options, or a teacher, that the method cannot work with."""

    def prepared(self, teacher: Teacher, draws: Draws) -> "Method":
        """The method with options that it takes from the teacher, by random numbers of before the first step."""
        return self

    def student(self, teacher: Teacher) -> nn.Module:
        """The network to train, which begins as the teacher; what needs no gradient is not trained, and not saved."""
        return copy.deepcopy(teacher.network).requires_grad_(True)

    def others(self, teacher: Teacher) -> dict[str, nn.Module]:
        """Further networks to train, by name."""
        return {}

    def turns(self, step: int) -> tuple[str, ...]:
        """Who is trained in a step, in order: "student" and names of others."""
        return ("student",)

    @property
    def stages(self) -> int:
        """Equal parts of the training; in each but the first the last one's student is the teacher."""
        return 1

    @abstractmethod
    def loss(self, players: Players, turn: str, batch: Batch) -> Tensor:
        """What is minimised in a turn, ()."""

    @abstractmethod
    def sampler(self, schedule: Schedule, progress: float = 1.0) -> FewStep:
        """What the student is sampled with once so much of the training is over."""

    def options(self) -> dict[str, bool | int | float | str]:
        """Its options by name."""
        return dataclasses.asdict(self)
