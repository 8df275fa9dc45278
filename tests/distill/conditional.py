"""A guided teacher whose answers are known: two classes, each a Gaussian, and a network that has learned them."""

from functools import cache

import torch
from torch import Tensor, nn

import solvers
from distill.batch import CONDITION, DATA, Draws
from distill.denoising import Preconditioned
from distill.distillation import Distillation
from distill.method import Teacher
from distill.trainer import Recipe, initialise, train
from solvers import noise
from solvers.model import levels
from solvers.schedule import Schedule
from tests.distill.toys import EDM, Small

CLASSES = 2
MEANS = torch.tensor([[0.8, 0.3], [-0.6, 0.1]])
SPREAD = torch.tensor([0.5, 0.3])


class Classes(nn.Module):
    """E[x0 | x_t, y] on EDM; y = CLASSES is no class, and they are equally likely."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        total = SPREAD**2 + t[:, None, None] ** 2
        from_means = x[:, None] - MEANS
        of_class = MEANS + SPREAD**2 / total * from_means
        shares = (-from_means.square() / (2 * total)).sum(-1).softmax(1)
        told = nn.functional.one_hot(y, CLASSES + 1)[:, :CLASSES].to(x)
        return (torch.where((y == CLASSES)[:, None], shares, told)[..., None] * of_class).sum(1)


class Labelled(Small):
    """F(x, c_noise, y): a class's embedding goes where the noise's goes."""

    def __init__(self) -> None:
        super().__init__(64)
        self.label = nn.Embedding(CLASSES + 1, 64)

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor) -> Tensor:
        angle = c_noise[:, None] * self.frequencies
        h = self.enter(x) + self.noise(torch.cat([angle.cos(), angle.sin()], 1)) + self.label(y)
        return self.leave(self.inner(h))


class Rescaled(nn.Module):
    """A data prediction on EDM as one on another schedule: D(x/alpha, sigma/alpha)."""

    def __init__(self, network: nn.Module, schedule: Schedule) -> None:
        super().__init__()
        self.network, self.schedule = network, schedule

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        alpha, sigma = levels(self.schedule, t.double())
        return self.network(x / alpha.to(x.dtype)[:, None], (sigma / alpha).to(x.dtype), y=y)


def _regression(network: nn.Module, generator: torch.Generator) -> Tensor:
    y = torch.randint(CLASSES + 1, (256,), generator=generator)
    t = EDM.sigma_min * (EDM.sigma_max / EDM.sigma_min) ** torch.rand(256, generator=generator)
    x = (2.0 + t**2).sqrt()[:, None] * torch.randn(256, 2, generator=generator)  # guidance leads further out than data
    weight = (t**2 + network.sigma_data**2) / (t * network.sigma_data) ** 2
    return (weight[:, None] * (network(x, t, y=y) - Classes()(x, t, y)).square()).mean()


@cache
def learned() -> nn.Module:
    """A network that has learned both classes, and what there is without one."""
    network = Preconditioned(Labelled(), sigma_data=0.75)
    initialise(network, 0)
    return train(network, _regression, Recipe(500, 256, 1e-2, ema=0.98, warmup=25)).network.requires_grad_(False)


def _classes(draws: Draws) -> dict[str, Tensor]:
    return {"y": torch.from_numpy(draws.integers(CONDITION, CLASSES))}


def _data(draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
    cond = _classes(draws)
    return MEANS[cond["y"]] + SPREAD * draws.normal(DATA, (2,)), cond


def guided_teacher(schedule: Schedule = EDM) -> Teacher:
    """The learned classes on a schedule, with what guidance needs."""
    network, where = learned(), "network.noise"
    if schedule != EDM:
        network, where = Rescaled(network, schedule), f"network.{where}"
    guidance = solvers.Guidance(1.0, {"y": CLASSES})
    return Teacher(solvers.Denoiser(network, schedule, "data", guidance), (2,), _data, _classes, where)


def guided(of: Teacher, scale: float) -> solvers.Denoiser:
    """The teacher's denoiser guided by `scale`."""
    return solvers.Denoiser(of.network, of.schedule, "data", solvers.Guidance(scale, {"y": CLASSES}))


def start(schedule: Schedule, count: int = 2048) -> tuple[Tensor, dict[str, Tensor]]:
    """x_T and classes that nothing was trained on."""
    z = torch.from_numpy(noise.normal(7, noise.LATENT, 0, count, (2,))).float()
    return z * schedule.prior_std(schedule.t_max), {"y": torch.arange(count) % CLASSES}


def fresh(k: int, count: int) -> Tensor:
    """The k-th draw of a plan that is run from `start`."""
    return torch.from_numpy(noise.normal(7, noise.STEP + k, 0, count, (2,))).float()


def student(made: Distillation, nfe: int, w: float, count: int = 2048) -> Tensor:
    """What the averaged student makes of `start` in so many calls when it is told w."""
    x_T, cond = start(made.teacher.schedule, count)
    told = cond | {"w": torch.full((count,), w)} if made.sampler.embedded else cond
    plan = made.sampler.plan(made.teacher.schedule, nfe)
    return solvers.sample(plan, made.averaged, x_T, lambda k: fresh(k, count), cond=told)


def error(x: Tensor, exact: Tensor, cond: dict[str, Tensor]) -> float:
    """Root mean square of x - exact over the spread of `exact` within its class."""
    spread = torch.cat([exact[cond["y"] == k] - exact[cond["y"] == k].mean(0) for k in range(CLASSES)])
    return float((x - exact).norm() / spread.norm())
