"""A distillation: a method's losses in the training loop, a curve of the student's quality, the best student kept."""

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distill.batch import Batch, Draws
from distill.method import Method, Players, Teacher
from distill.student import FewStep
from distill.trainer import Loop, Recipe
from solvers.model import Denoiser

Quality = Callable[[Denoiser, FewStep], float]  # of a student sampled so; lower is better
Weights = dict[str, Tensor]


@dataclass
class Progress:
    """What is known of a distillation so far: `curve` has (step, quality), `best` the weights of its stage's best.

    `calls` are network evaluations of one sample, a backward pass two; `finished` are the students of earlier stages,
    each with its sampler, its quality and what was spent until then.
    """

    calls: int = 0
    seconds: float = 0.0
    curve: list[tuple[int, float]] = field(default_factory=list)
    best: Weights = field(default_factory=dict)
    best_quality: float = float("inf")
    best_step: int = 0
    finished: list[dict[str, Any]] = field(default_factory=list)


def check(method: Method, teacher: Teacher, recipe: Recipe) -> None:
    """Raises ValueError for what cannot be trained: options, a teacher that they do not fit, too few steps."""
    method.check(teacher)
    if recipe.steps < method.stages:
        raise ValueError(f"{recipe.steps} steps: the method needs one for each of its {method.stages} stages")


class Distillation:
    """A student in training: made of (method, teacher, recipe) alone, and of nothing global.

    `student` is the network to train, where it is not what the method makes of the teacher's.  Raises ValueError for a
    method that cannot work with this teacher.
    """

    def __init__(
        self,
        method: Method,
        teacher: Teacher,
        recipe: Recipe,
        accelerator: Accelerator | None = None,
        student: nn.Module | None = None,
    ) -> None:
        check(method, teacher, recipe)
        self.recipe = recipe
        self.accelerator = accelerator or Accelerator(cpu=True)
        if recipe.batch % self.accelerator.num_processes:
            raise ValueError(f"a batch of {recipe.batch}: {self.accelerator.num_processes} processes share it evenly")
        self.teacher = teacher
        self.progress = Progress()
        self.method = self._prepared(method)
        self.stage = 0
        self._begin(student if student is not None else method.student(teacher))

    def _prepared(self, method: Method) -> Method:
        """The method with what it finds out beforehand, which is part of the training's cost."""
        begin, before = time.perf_counter(), _calls([self.teacher.denoiser])
        draws = Draws(self.recipe.seed, 0, 0, self.recipe.batch, self.accelerator.device, turn=-1)
        prepared = method.prepared(self.teacher, draws)
        self.progress.calls += _calls([self.teacher.denoiser]) - before
        self.progress.seconds += time.perf_counter() - begin
        return prepared

    def _begin(self, student: nn.Module) -> None:
        """A loop of the present stage, for a student as it is."""
        others = self.method.others(self.teacher)
        networks = {name: net.to(self.accelerator.device) for name, net in {"student": student, **others}.items()}
        begins = self._starts(self.stage)
        recipe = replace(self.recipe, steps=self._starts(self.stage + 1) - begins)
        self.loop = Loop(networks, recipe, self.accelerator, self.method.rates, self.method.target_decay, begins)
        denoisers = {name: self._denoiser(net) for name, net in networks.items()}
        student_denoiser = denoisers.pop("student")
        target = self._denoiser(self.loop.target) if self.method.target_decay else student_denoiser
        self.players = Players(self.teacher, student_denoiser, target, denoisers)
        self._counted = [self.teacher.denoiser, student_denoiser, target, *denoisers.values()]

    def _starts(self, stage: int) -> int:
        """The step at which a stage begins: the first whose share of the training, in stages, is `stage`."""
        return math.ceil(self.recipe.steps * stage / self.method.stages)

    def _denoiser(self, network: nn.Module) -> Denoiser:
        of = self.teacher.denoiser
        return Denoiser(network, of.schedule, of.predicts, of.guidance)

    @property
    def step(self) -> int:
        """Steps that are over."""
        return self._starts(self.stage) + self.loop.step

    @property
    def done(self) -> bool:
        return self.step >= self.recipe.steps

    @property
    def sampler(self) -> FewStep:
        """What the present student is sampled with."""
        return self.method.sampler(self.teacher.schedule, max(0, self.step - 1) / self.recipe.steps)

    @property
    def averaged(self) -> Denoiser:
        """The student as it is sampled: the moving average of the weights."""
        return self._denoiser(self.loop.averaged)

    def weights(self) -> Weights:
        """Of the averaged student, those that are trained, on the CPU."""
        trained = self.loop.players["student"].trained | {name for name, _ in self.loop.averaged.named_buffers()}
        state = self.loop.averaged.state_dict()
        return {name: value.detach().cpu().clone() for name, value in state.items() if name in trained}

    def advance(self) -> float:
        """One step: every turn of it; returns the last turn's loss.  Raises FloatingPointError."""
        begin, step = time.perf_counter(), self.step
        before = _calls(self._counted)
        players = replace(self.players, progress=step / self.recipe.steps)
        value = 0.0
        with torch.random.fork_rng(devices=[]):
            own = np.random.SeedSequence([self.recipe.seed, step, self.accelerator.process_index])
            torch.manual_seed(int(own.generate_state(1)[0]))  # of what draws by itself, as dropout; 32 bits count
            for k, turn in enumerate(self.method.turns(self.loop.step)):
                batch = self._batch(step, k)
                value = self.loop.turn(turn, lambda t=turn, b=batch: self.method.loss(players, t, b))
        self.loop.step += 1
        self.progress.calls += (_calls(self._counted) - before) * self.accelerator.num_processes
        self.progress.seconds += time.perf_counter() - begin
        return value

    def _batch(self, step: int, turn: int) -> Batch:
        """This process's samples of a step's turn."""
        a = self.accelerator
        count = self.recipe.batch // a.num_processes
        first = step * self.recipe.batch + a.process_index * count
        draws = Draws(self.recipe.seed, step, first, count, a.device, turn)
        return Batch(*self.teacher.data(draws), draws)

    def next_stage(self) -> None:
        """Keep the stage's best student, which becomes the teacher, and begin anew; the last stage has no next."""
        if self.loop.step < self.loop.recipe.steps or self.done:
            return
        sampler = self.sampler.to_dict()
        best = {"sampler": sampler, "step": self.progress.best_step, "quality": self.progress.best_quality}
        spent = {"steps": self.step, "calls": self.progress.calls, "seconds": self.progress.seconds}
        self.progress.finished.append(best | spent | {"weights": self.progress.best})
        student = copy.deepcopy(self.loop.averaged)
        student.load_state_dict(self.progress.best, strict=False)
        self._succeed(student)
        self.progress.best, self.progress.best_quality = {}, float("inf")

    def _succeed(self, student: nn.Module) -> None:
        """The student is the next stage's teacher, and where its student begins."""
        of = self.teacher.denoiser
        frozen = Denoiser(copy.deepcopy(student).requires_grad_(False), of.schedule, of.predicts, of.guidance)
        self.teacher = replace(self.teacher, denoiser=frozen)
        trained, mode = self.loop.players["student"].trained, self.players.student.network.training
        for name, p in student.named_parameters():
            p.requires_grad_(name in trained)
        self.stage += 1
        self._begin(student.train(mode))

    def measure(self, quality: Quality) -> float:
        """Add a point to the curve; the best weights of the stage are kept."""
        value = quality(self.averaged, self.sampler)
        self.progress.curve.append((self.step, value))
        if value < self.progress.best_quality or not self.progress.best:
            self.progress.best, self.progress.best_quality = self.weights(), min(math.inf, value)  # inf for NaN
            self.progress.best_step = self.step
        return value

    def run(
        self,
        quality: Quality,
        every: int,
        on_step: Callable[[int, float], None] = lambda step, loss: None,
        on_saved: Callable[["Distillation"], None] = lambda distillation: None,
    ) -> None:
        """Train to the end, measuring every so many steps and at the end of each stage; `on_saved` sees it then.

        Raises FloatingPointError, naming the step, when the loss stops being finite.
        """
        while not self.done:
            self.next_stage()
            value = self.advance()
            on_step(self.step - 1, value)
            if self.step % every == 0 or self.loop.step == self.loop.recipe.steps:
                self.measure(quality)
                on_saved(self)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on, of tensors and plain values.

        Its tensors are the networks' own, as torch's are: write it, or copy it, before training goes on.
        """
        teacher = self.teacher.network.state_dict() if self.stage else {}
        progress = vars(self.progress)
        return {"stage": self.stage, "teacher": teacher, "loop": self.loop.state_dict(), "progress": progress}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, by a distillation of the same method, teacher and recipe."""
        for _ in range(state["stage"]):
            self._succeed(copy.deepcopy(self.loop.averaged))
        if self.stage:
            self.teacher.network.load_state_dict(state["teacher"])
        self.loop.load_state_dict(state["loop"])
        self.progress = Progress(**copy.deepcopy(state["progress"]))


def _calls(denoisers: list[Denoiser]) -> int:
    """Network evaluations of one sample so far, each denoiser once; a backward pass counts two."""
    return sum(d.passed + 2 * d.backwards for d in {id(d): d for d in denoisers}.values())
