"""LCM: latent consistency distillation of a guided teacher.  Luo et al. 2023, arXiv 2310.04378, Algorithm 1.

    f(x, w, t) = c_skip(t) x + c_out(t) D(x, w, t),  c_skip = 1 and c_out = 0 at the schedule's end        Eq. (9)
    x^ = one step of the guided ODE from t_{n+k} to t_n by a solver, w ~ U[w_min, w_max]                   Eq. (17)
    L = d(f(x_{n+k}, w, t_{n+k}), f_target(x^, w, t_n))                                                    Eq. (18)
The coefficients are those of the solver `lcm`, which samples what is trained here.  The variant with low-rank adapters,
Luo et al. 2023, arXiv 2311.05556, is distilled at one scale; unlike there its target is a slow copy as well, without
which it learned more slowly here, and not at all at large learning rates.
"""

import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from distill.batch import LOSS, Batch, Draws
from distill.embedding import ScaleEmbedded
from distill.method import Method, Players, Teacher
from distill.steps import intervals, noised, pseudo_huber, times
from distill.student import FewStep
from distill.trainer import Recipe
from solvers.lcm import boundary_condition
from solvers.model import column
from solvers.schedule import Array, Schedule, VPDiscrete
from solvers.stacked import Stacked

BUDGETS = (1, 2, 4, 8)
DISTANCE = pseudo_huber(0.001)


@dataclass(frozen=True)
class LCM(Method):
    """`solver` steps over `skip` of `points` intervals in `calls` network calls, guided.

    With `embedded` the student is told w, any in [w_min, w_max], and sampled at `guidance` unless told otherwise;
    without, `guidance` alone is distilled into it.  `lora` is the rank of adapters trained in place of all weights.
    """

    solver: str = "ddim"
    calls: int = 1
    points: int = 50
    skip: int = 1
    embedded: bool = True
    w_min: float = 1.0
    w_max: float = 4.0
    guidance: float = 2.0
    lora: int = 0

    recipe: ClassVar[Recipe] = Recipe(5_000, 128, 1e-3, optimiser="radam")
    target_decay: ClassVar = 0.95

    def check(self, teacher: Teacher) -> None:
        if self.lora < 0 or (self.lora and self.embedded):
            raise ValueError(f"lora = {self.lora}: a rank >= 0, and with adapters embedded=False: they learn one scale")
        if self.points < max(BUDGETS):
            raise ValueError(f"points = {self.points}: at least {max(BUDGETS)}, the most steps of a student")
        if not 1 <= self.skip <= self.points:
            raise ValueError(f"skip = {self.skip}: from 1 to the number of points, {self.points}")
        low, high = self.w_min, self.w_max
        if self.embedded and not low <= self.guidance <= high:
            raise ValueError(f"guidance = {self.guidance:g} lies outside [w_min, w_max] = [{low:g}, {high:g}]")
        if self._guides and teacher.denoiser.guidance is None:
            raise ValueError("the teacher has no guidance to distil: embedded=False, guidance=1 is for such")
        self._steps(teacher.schedule)

    @property
    def _guides(self) -> bool:
        return self.embedded or self.guidance != 1

    def _times(self, schedule: Schedule) -> Array:
        """Rising times: labels 0, 19, 39, ..., 999 of a discrete schedule, or whatever is usual on another."""
        return times(schedule, self.points, "tcd" if isinstance(schedule, VPDiscrete) else "")

    def _steps(self, schedule: Schedule) -> Stacked:
        """The teacher's step down from each of the times but the first."""
        return intervals(schedule, tuple(self._times(schedule).tolist()), self.solver, self.calls, self.skip)

    def student(self, teacher: Teacher) -> nn.Module:
        network = super().student(teacher)
        if self.lora:
            return adapted(network, self.lora)
        return ScaleEmbedded(network, teacher.time_embedding) if self.embedded else network

    def loss(self, players: Players, turn: str, batch: Batch) -> Tensor:
        schedule, draws = players.teacher.schedule, batch.draws
        rising, steps, teacher = self._times(schedule), self._steps(schedule), players.teacher.denoiser
        n = draws.integers(LOSS, self.points)
        t, s = rising[n + 1], rising[np.maximum(0, n + 1 - self.skip)]
        w = self._scales(draws)
        told = {**batch.cond, "w": torch.from_numpy(w).to(batch.x0)} if self.embedded else batch.cond
        scales = w if self._guides else None
        x = noised(schedule, batch.x0, batch.noise(LOSS + 2), t)
        with torch.no_grad():
            x_hat = steps.run(n, lambda x, t: teacher.at_each(x, t, steps.predicts, batch.cond, scales), x)
            target = bounded(schedule, x_hat, players.target.at_each(x_hat, s, "data", told), s)
        return DISTANCE(bounded(schedule, x, players.student.at_each(x, t, "data", told), t), target).mean()

    def _scales(self, draws: Draws) -> Array:
        """Guidance's scale w for each sample."""
        if not self.embedded:
            return np.full(draws.count, self.guidance)
        return self.w_min + (self.w_max - self.w_min) * draws.uniform(LOSS + 1)

    def sampler(self, schedule: Schedule, progress: float = 1.0) -> FewStep:
        falling = self._times(schedule)[::-1]
        picked = {n: falling[np.linspace(0, self.points, n, endpoint=False).astype(int)] for n in BUDGETS}
        times = {n: (*t.tolist(), 0.0) for n, t in picked.items()}  # of the training's own; no noise at the end
        if not self.embedded:  # its guidance is in the weights
            return FewStep("lcm", {"boundary": True}, times=times)
        accepts = (self.w_min, self.w_max)
        return FewStep("lcm", {"boundary": True}, times=times, guidance=self.guidance, accepts=accepts, embedded=True)


def bounded(schedule: Schedule, x: Tensor, D: Tensor, t: Array) -> Tensor:
    """f = c_skip(t) x + c_out(t) D, at times (B,), as the solver `lcm` has it with boundary=True."""
    there, which = np.unique(t, return_inverse=True)
    c_skip, c_out = np.array([boundary_condition(schedule, float(each)) for each in there]).T[:, which]
    return column(c_skip, x) * x + column(c_out, x) * D


def adapted(network: nn.Module, rank: int) -> nn.Module:
    """The network, frozen, with LoRA on every linear and convolutional layer: nothing is changed at first."""
    from peft import LoraConfig, inject_adapter_in_model  # seconds to import

    layers = [name for name, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    if not layers:
        raise ValueError(f"lora = {rank}: the network has neither linear nor convolutional layers")
    exactly = "|".join(map(re.escape, layers))  # a list would be of endings
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # peft draws one of the two factors
        return inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=exactly), network)
