"""Small teachers whose answers are known: one Gaussian, a ring of eight, on any schedule; and small students."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import ot
import torch
from torch import Tensor, nn

import solvers
from distill.batch import DATA, Draws
from distill.denoising import Preconditioned
from distill.distillation import Distillation
from distill.method import Method, Teacher
from distill.trainer import Recipe, initialise
from solvers import noise
from solvers.model import levels
from solvers.schedule import Schedule

MU, S0 = torch.tensor([0.8, -0.5]), torch.tensor([0.9, 0.4])
EDM = solvers.EDM()


class Gaussian(nn.Module):
    """E[x0 | x_t] of N(MU, diag S0^2), on a schedule."""

    def __init__(self, schedule: Schedule = EDM, mu: Tensor = MU) -> None:
        super().__init__()
        self.schedule, self.mu = schedule, mu

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (level.to(x.dtype)[:, None] for level in levels(self.schedule, t.double()))
        return self.mu + alpha * S0**2 / (alpha**2 * S0**2 + sigma**2) * (x - alpha * self.mu)


def exact_map(x: Tensor, t: float, s: float = 0.0, schedule: Schedule = EDM) -> Tensor:
    """The ODE's solution at s from x at t: mu_s + (x - mu_t) std_s/std_t."""
    (a, b), (c, d) = ((float(schedule.alpha(at)), float(schedule.sigma(at))) for at in (t, s))
    return c * MU + (x - a * MU) * ((c * S0).square() + d**2).sqrt() / ((a * S0).square() + b**2).sqrt()


CENTRES = torch.tensor([[math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)] for k in range(8)])
SPREAD = 0.08  # of each of the ring's eight modes


class Ring(nn.Module):
    """E[x0 | x_t] of eight Gaussians on the unit circle, x0 = centre + SPREAD z."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        total = (t**2 + SPREAD**2)[:, None]
        from_centres = x[:, None] - CENTRES
        shares = (-from_centres.square().sum(-1) / (2 * total)).softmax(1)[..., None]
        return (shares * (CENTRES + (SPREAD**2 / total)[..., None] * from_centres)).sum(1)


def ring(seed: int, count: int) -> Tensor:
    """Exact draws of the ring."""
    return _ring(Draws(seed, 0, 0, count))


def _ring(draws: Draws) -> Tensor:
    return CENTRES[torch.from_numpy(draws.integers(DATA, 8))] + SPREAD * draws.normal(DATA + 1, (2,))


class Affine(nn.Module):
    """D = a(t) + b(t) x, with a, b linear between knots of the log noise level: all that a Gaussian's student needs.

    Untrained it says 0.  A knot hears of the times beside it alone, so that large steps of learning are stable.
    """

    def __init__(self, schedule: Schedule = EDM, knots: int = 32) -> None:
        super().__init__()
        self.schedule = schedule
        self.knots = nn.Buffer(torch.linspace(math.log(1e-3), math.log(200.0), knots))
        self.net = nn.Linear(knots, 4, bias=False)
        nn.init.zeros_(self.net.weight)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = levels(self.schedule, t.double())
        log_u = (sigma / alpha.clamp(min=1e-3)).log().to(x.dtype)[:, None].clamp(max=float(self.knots[-1]))
        near = (1 - (log_u - self.knots).abs() / (self.knots[1] - self.knots[0])).clamp(min=0)
        a, b = self.net(near).chunk(2, 1)
        return a + b * x / torch.hypot(alpha, sigma).to(x.dtype)[:, None]


class Small(nn.Module):
    """F(x, c_noise) for two numbers: a perceptron of three layers."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.frequencies = nn.Buffer(2.0 ** torch.arange(-1, 3))
        self.enter = nn.Linear(2, width)
        self.noise = nn.Linear(8, width)
        self.inner = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.leave = nn.Linear(width, 2)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        angle = c_noise[:, None] * self.frequencies
        h = self.enter(x) + self.noise(torch.cat([angle.cos(), angle.sin()], 1))
        return self.leave(self.inner(h))


def small(seed: int = 0, width: int = 96) -> nn.Module:
    """A fresh data prediction for two numbers on EDM."""
    network = Preconditioned(Small(width), sigma_data=0.75)
    initialise(network, seed)
    return network


def teacher(network: nn.Module, data: Callable[[Draws], Tensor], schedule: Schedule = EDM) -> Teacher:
    """A data prediction without conditions as a teacher."""
    frozen = solvers.Denoiser(network.requires_grad_(False), schedule, "data")
    return Teacher(frozen, (2,), lambda draws: (data(draws), {}), lambda draws: {}, features="network.inner.3")


def gaussian_teacher(schedule: Schedule = EDM, mu: Tensor = MU) -> Teacher:
    """The exact Gaussian; one with another `mu` is a corrupted teacher of the same data."""
    return teacher(Gaussian(schedule, mu), lambda draws: MU + S0 * draws.normal(DATA, (2,)), schedule)


def ring_teacher(network: nn.Module | None = None) -> Teacher:
    """The exact ring, or a network trained on it."""
    return teacher(network or Ring(), _ring)


def distilled(
    method: Method, of: Teacher, student: nn.Module | None = None, quality: Callable[..., float] | None = None,
    **recipe: object,
) -> Distillation:  # fmt: skip
    """A distillation run to its end by the method's recipe with these fields changed."""
    settings: Recipe = replace(method.recipe, **recipe)  # type: ignore[arg-type]
    made = Distillation(method, of, settings, student=student)
    made.run(quality or (lambda denoiser, sampler: 0.0 - made.step), every=max(1, settings.steps // 2))
    return made


def sampled(made: Distillation, nfe: int, seed: int = 0, count: int = 4096) -> tuple[Tensor, Tensor]:
    """x_T and what the averaged student makes of it in so many calls."""
    return run(made.averaged, made.sampler.plan(made.teacher.schedule, nfe), seed, count)


def run(denoiser: solvers.Denoiser, plan: solvers.Plan, seed: int = 0, count: int = 4096) -> tuple[Tensor, Tensor]:
    """x_T and what a plan makes of it."""
    z = torch.from_numpy(noise.normal(seed, noise.LATENT, 0, count, (2,))).float()
    x_T = z * denoiser.schedule.prior_std(plan.times[0])
    draws = lambda k: torch.from_numpy(noise.normal(seed, noise.STEP + k, 0, count, (2,))).float()  # noqa: E731
    return x_T, solvers.sample(plan, denoiser, x_T, draws)


def sliced_w2(a: Tensor, b: Tensor) -> float:
    """Sliced Wasserstein distance of order 2 between equally many points."""
    return float(ot.sliced_wasserstein_distance(a.double().numpy(), b.double().numpy(), n_projections=128, seed=0))


def masses(x: Tensor) -> np.ndarray:
    """The share of points nearest to each of the ring's modes, over what it should be, (8,)."""
    nearest = torch.cdist(x, CENTRES).argmin(1)
    return np.bincount(nearest.numpy(), minlength=8) / len(x) * 8
