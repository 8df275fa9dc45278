"""The simplest distillations there are, for tests of the loop: a student imitates its teacher."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from distill.batch import LOSS, Batch
from distill.denoising import Preconditioned
from distill.distillation import Distillation
from distill.method import Method, Players, Teacher
from distill.steps import l2, noised
from distill.student import FewStep
from distill.trainer import Recipe, initialise
from solvers.model import Denoiser
from tests.distill.toys import EDM, gaussian_teacher, small

RECIPE = Recipe(steps=12, batch=16, lr=1e-2, ema=0.9, warmup=2)


@dataclass(frozen=True)
class Imitation(Method):
    """The student's data prediction is the teacher's, half of it the target's own: the simplest distillation.

    It begins with weights of its own.
    """

    spoilt_at: int = -1  # the step whose loss is `bad`
    bad: float = math.nan
    frozen: str = ""  # parameters that begin so are not trained

    recipe: ClassVar[Recipe] = RECIPE

    def student(self, teacher: Teacher) -> nn.Module:
        network = copy.deepcopy(teacher.network)
        initialise(network, 9)
        for name, p in network.named_parameters():
            p.requires_grad_(not (self.frozen and name.startswith(self.frozen)))
        return network

    def loss(self, players: Players, turn: str, batch: Batch) -> Tensor:
        t = 0.1 + 3 * batch.draws.uniform(LOSS)
        x = noised(EDM, batch.x0, batch.noise(LOSS + 1), t)
        with torch.no_grad():
            y = players.teacher.denoiser.at_each(x, t, "data", batch.cond)
            y = (y + players.target.at_each(x, t, "data", batch.cond)) / 2
        value = l2(players.student.at_each(x, t, "data", batch.cond), y).mean()
        return value + self.bad if round(players.progress * self.recipe.steps) == self.spoilt_at else value

    def sampler(self, schedule: Any, progress: float = 1.0) -> FewStep:
        return FewStep("ddim", grid="karras", budgets=(1 + math.floor(progress * self.stages),))


@dataclass(frozen=True)
class Slow(Imitation):
    target_decay: ClassVar[float] = 0.8


@dataclass(frozen=True)
class Staged(Imitation):
    count: int = 3

    @property
    def stages(self) -> int:
        return self.count


@dataclass(frozen=True)
class Rivals(Imitation):
    """A critic learns in every step to undo what the student does, the student in every second to please the critic."""

    rates: ClassVar[dict[str, float]] = {"critic": 0.5}

    def others(self, teacher: Teacher) -> dict[str, nn.Module]:
        return {"critic": copy.deepcopy(teacher.network).requires_grad_(True)}

    def turns(self, step: int) -> tuple[str, ...]:
        return ("critic", "student") if step % 2 == 0 else ("critic",)

    def loss(self, players: Players, turn: str, batch: Batch) -> Tensor:
        critic, t = players.others["critic"], np.full(len(batch.x0), 1.0)
        x = noised(EDM, batch.x0, batch.noise(LOSS), t)
        ours = players.student.at_each(x, t, "data", batch.cond)
        return l2(critic.at_each(ours, t, "data", batch.cond), batch.x0).mean()


class Dropping(nn.Module):
    """A small network with dropout and a buffer that training changes."""

    def __init__(self, p: float = 0.2) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 16), nn.Linear(16, 2)
        self.dropout = nn.Dropout(p)
        self.seen = nn.Buffer(torch.zeros(()))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.seen += len(x)
        return self.last(self.dropout(self.first(torch.cat([x, c_noise[:, None]], 1)).tanh()))


def dropping(seed: int = 3) -> nn.Module:
    network = Preconditioned(Dropping(), 0.75)
    initialise(network, seed)
    return network.train()


def learner(method: Method, student: nn.Module | None = None, **recipe: Any) -> Distillation:
    return Distillation(method, gaussian_teacher(), replace(RECIPE, **recipe), student=student or dropping())


def networks_teacher(seed: int = 5) -> Teacher:
    """A teacher with parameters, so that its student can become one."""
    return replace(gaussian_teacher(), denoiser=Denoiser(small(seed, 16).requires_grad_(False), EDM, "data"))


def no_quality(denoiser: Denoiser, sampler: FewStep) -> float:
    return 1.0


def flat(state: Any) -> dict[str, Any]:
    """Leaves of nested states by path, without the clock."""
    if not isinstance(state, dict | list | tuple):
        return {"": state}
    items = state.items() if isinstance(state, dict) else enumerate(state)
    return {f"{k}/{path}": leaf for k, v in items if k != "seconds" for path, leaf in flat(v).items()}


def assert_same(a: Distillation, b: Distillation) -> None:
    found, expected = flat(a.state_dict()), flat(b.state_dict())
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        same = torch.equal(found[path], leaf) if isinstance(leaf, Tensor) else found[path] == leaf
        assert same, path


MADE: dict[str, Callable[[], Distillation]] = {
    "a target of its own": lambda: learner(Slow()),
    "the student as target": lambda: learner(Imitation()),
    "radam and clipping": lambda: learner(Imitation(), optimiser="radam", clip=0.1),
    "two players": lambda: Distillation(Rivals(), networks_teacher(), RECIPE, student=dropping()),
    "stages": lambda: Distillation(Staged(), networks_teacher(), RECIPE),
}
