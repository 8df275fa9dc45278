"""DMD2: a generator follows the difference of two scores, the data's and its own samples', and deceives a critic.

Yin et al. 2024, "Improved Distribution Matching Distillation for Fast Image Synthesis", arXiv 2405.14867, and 2023,
"One-step Diffusion with Distribution Matching Distillation", arXiv 2311.18828 (DMD).  The teacher is the score of the
data; the critic, which begins as the teacher too, is trained beside the generator to be that of its samples.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from distill.adversarial import Critic, critic_loss, generator_loss, judged
from distill.batch import LOSS, Batch, Draws
from distill.method import Method, Players, Teacher
from distill.steps import l2, noised, times, weighted
from distill.student import FewStep
from distill.trainer import Recipe
from solvers.schedule import Array, Schedule

STEP, START, LEVEL, NOISE, REAL_LEVEL, REAL_NOISE, AGAIN = range(LOSS, LOSS + 7)  # AGAIN + i: renoising of step i
LEVELS = 1000  # of the noise that scores are compared at


@dataclass(frozen=True)
class DMD2(Method):
    """Distribution matching with two time scales, a GAN on the fake score's features, and no regression loss.

    A sample takes `steps` calls; the critic has `ttur` turns for one of the student.  `gan` weighs the adversarial loss
    of the generator and `gan_critic` that of the critic; with gan = 0 no real data is looked at.  Scores are compared
    at noise from `low` to `high` of the usual grid.  `guidance` is the teacher's scale; the student learns at
    `student_rate` times the critic's rate.
    """

    steps: int = 1
    ttur: int = 5
    gan: float = 3e-3
    gan_critic: float = 1e-2
    low: float = 0.02
    high: float = 0.98
    guidance: float = 1.0
    student_rate: float = 1.0

    recipe: ClassVar[Recipe] = Recipe(steps=9_000, batch=64, lr=1e-3, clip=10.0)

    @property
    def rates(self) -> Mapping[str, float]:  # type: ignore[override]
        return {"student": self.student_rate}

    def check(self, teacher: Teacher) -> None:
        if self.steps < 1 or self.ttur < 1:
            raise ValueError(f"dmd2: steps = {self.steps} and ttur = {self.ttur} must be at least 1")
        if self.gan < 0 or self.gan_critic < 0:
            raise ValueError(f"dmd2: gan = {self.gan:g} and gan_critic = {self.gan_critic:g} must not be negative")
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"dmd2: low = {self.low:g} and high = {self.high:g} must be shares, 0 <= low < high <= 1")
        if not 0 < self.student_rate <= 1:
            raise ValueError(f"dmd2: student_rate = {self.student_rate:g} must be a share of the critic's, up to 1")
        if self.guidance != 1 and teacher.denoiser.guidance is None:
            raise ValueError(f"dmd2: guidance = {self.guidance:g} needs a teacher with guidance, and this has none")
        if self.gan and not teacher.features:
            raise ValueError(f"dmd2: gan = {self.gan:g} needs a teacher that names its features; gan = 0 does without")

    def others(self, teacher: Teacher) -> dict[str, nn.Module]:
        network = copy.deepcopy(teacher.network).requires_grad_(True)
        if not self.gan:
            return {"critic": network}
        device = next((p.device for p in network.parameters()), torch.device("cpu"))
        cond = teacher.conditions(Draws(0, 0, 0, 1, device))
        x, t = torch.zeros(1, *teacher.shape, device=device), torch.full((1,), teacher.schedule.t_max, device=device)
        return {"critic": Critic(network, teacher.features, x, t, cond)}

    def turns(self, step: int) -> tuple[str, ...]:
        """Section 4.2: the fake score must keep up with what it is the score of."""
        return ("critic",) if step % self.ttur else ("critic", "student")

    def loss(self, players: Players, turn: str, batch: Batch) -> Tensor:
        return self._critic(players, batch) if turn == "critic" else self._student(players, batch)

    def _critic(self, players: Players, batch: Batch) -> Tensor:
        """Denoising of the generator's samples, weighted by alpha^2/sigma^2 + 1 (EDM's at sigma_data = 1); the GAN."""
        schedule, critic = players.teacher.schedule, players.others["critic"]
        with torch.no_grad():
            x = self._generated(players, batch)
        s = self._levels(schedule, batch.draws.uniform(LEVEL))
        x_s = noised(schedule, x, batch.noise(NOISE), s)
        weight = (schedule.alpha(s) / schedule.sigma(s)) ** 2 + 1
        if not self.gan:
            return weighted(weight, l2(critic.at_each(x_s, s, "data", batch.cond), x))
        D, fake = judged(critic, x_s, s, batch.cond)
        r = self._levels(schedule, batch.draws.uniform(REAL_LEVEL))
        _, real = judged(critic, noised(schedule, batch.x0, batch.noise(REAL_NOISE), r), r, batch.cond)
        return weighted(weight, l2(D, x)) + self.gan_critic * critic_loss(fake, real)

    def _student(self, players: Players, batch: Batch) -> Tensor:
        """The gradient of KL(fake || data) over noise levels, DMD's Eqs. (7) and (8); the GAN."""
        schedule, critic = players.teacher.schedule, players.others["critic"]
        x = self._generated(players, batch)
        s = self._levels(schedule, batch.draws.uniform(LEVEL))
        x_s = noised(schedule, x, batch.noise(NOISE), s)
        adversarial = x.new_zeros(())
        with torch.no_grad():
            scales = None if self.guidance == 1 else np.full_like(s, self.guidance)
            D_real = players.teacher.denoiser.at_each(x_s, s, "data", batch.cond, scales)
            if not self.gan:
                D_fake = critic.at_each(x_s, s, "data", batch.cond)
        if self.gan:
            D_fake, logits = judged(critic, x_s, s, batch.cond)
            adversarial = self.gan * generator_loss(logits)
        size = (x - D_real).flatten(1).abs().mean(1).reshape(-1, *[1] * (x.ndim - 1))
        target = (x - (D_fake - D_real) / size).detach()
        return l2(x, target).mean() / 2 + adversarial

    def _generated(self, players: Players, batch: Batch) -> Tensor:
        """The generator's x0 at a step drawn for the batch, from states that its own earlier steps made.

        Backward simulation, Section 4.5: what it meets in training is what it meets when it is sampled.
        """
        schedule = players.teacher.schedule
        ts = np.repeat(_steps(schedule, self.steps)[:, None], len(batch.x0), axis=1)
        x = schedule.prior_std(ts[0, 0]) * batch.noise(START)
        k = int(batch.draws.shared(STEP) * self.steps)
        for i in range(k):
            with torch.no_grad():
                D = players.student.at_each(x, ts[i], "data", batch.cond)
                x = noised(schedule, D, batch.noise(AGAIN + i), ts[i + 1])
        return players.student.at_each(x, ts[k], "data", batch.cond)

    def _levels(self, schedule: Schedule, u: Array) -> Array:
        """Times of noise that scores are compared at, even in their index, for uniform numbers u (B,)."""
        first, last = self.low * LEVELS, self.high * LEVELS
        which = (first + u * (last - first)).astype(int)
        return np.asarray(times(schedule, LEVELS - 1)[which])

    def sampler(self, schedule: Schedule, progress: float = 1.0) -> FewStep:
        """Data predictions, noised again from step to step; the last one is the sample."""
        return FewStep("lcm", times={self.steps: (*_steps(schedule, self.steps).tolist(), 0.0)})


def _steps(schedule: Schedule, steps: int) -> Array:
    """The times of the generator's calls, from noise on."""
    return times(schedule, steps)[:0:-1]
