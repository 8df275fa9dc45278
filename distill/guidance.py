"""AGD: adapter guidance distillation, one forward where guidance takes two.  Jensen et al. 2025, arXiv 2503.07274.

    D_w = D(x, null) + w (D(x, c) - D(x, null)),   L = lambda(t) ||D_theta(x, c, w) - D_w||^2
over the states x of guided trajectories, which are what sampling meets, and w ~ U[1, w_max].  The base is frozen; small
adapters, told w, are trained.  The student is sampled as its teacher was, by the same solver, for half of its forwards.
"""

import copy
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

import solvers
from distill.batch import LOSS, Batch
from distill.embedding import WIDTH, scale_embedding
from distill.method import Method, Players, Teacher
from distill.steps import l2, usual_grid, weighted
from distill.student import FewStep
from distill.trainer import Recipe, initialise
from solvers.model import conversion
from solvers.schedule import Array, Schedule
from solvers.stacked import Stacked

BUDGETS = (5, 8, 10, 20)


class Adapter(nn.Module):
    """up(s * down(input)), of low rank, with a factor s (B, rank) for each sample: zero at first."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int) -> None:
        super().__init__()
        self.down: nn.Module
        self.up: nn.Module
        if isinstance(layer, nn.Conv2d):
            where = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
            self.down = nn.Conv2d(layer.in_channels, rank, *where, bias=False, padding_mode=layer.padding_mode)
            self.up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        else:
            self.down = nn.Linear(layer.in_features, rank, bias=False)
            self.up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        h = self.down(x)
        between = [1] * (h.ndim - 2)
        shape = (len(s), -1, *between) if isinstance(self.down, nn.Conv2d) else (len(s), *between, -1)
        out: Tensor = self.up(h * s.reshape(shape))
        return out


class ScaleAdapted(nn.Module):
    """network(x, t, w): a frozen network whose linear and convolutional layers have adapters that are told w.

    Their factors are (w - 1) times a learned function of w, so that w = 1 gives the network alone.  Raises ValueError
    for a network without such layers.
    """

    def __init__(self, network: nn.Module, rank: int) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.rank = rank
        layers = {name: m for name, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
        if not layers:
            raise ValueError("the network has neither linear nor convolutional layers to adapt")
        self.at = tuple(layers)
        self.adapters = nn.ModuleList(Adapter(layer, rank) for layer in layers.values())
        initialise(self.adapters, 0)
        self.factors = nn.Linear(WIDTH, rank * len(layers))
        nn.init.zeros_(self.factors.weight)
        nn.init.ones_(self.factors.bias)

    def forward(self, x: Tensor, t: Tensor, w: Tensor, **cond: Tensor) -> Tensor:
        """x (B, *shape), t and w (B,) -> the network's prediction guided by w."""
        own = self.factors.weight.dtype
        about = scale_embedding(w.to(torch.float32)).to(own) * WIDTH**-0.5  # no longer than what the layers see
        factors = (w.to(own)[:, None] - 1) * self.factors(about)
        with ExitStack() as hooks:  # of this call alone: a copy of the network has none that point elsewhere
            for at, adapter, s in zip(self.at, self.adapters, factors.split(self.rank, 1), strict=True):
                added = lambda _, inputs, out, adapter=adapter, s=s: out + adapter(inputs[0], s)  # noqa: E731
                hooks.enter_context(self.network.get_submodule(at).register_forward_hook(added))
            out: Tensor = self.network(x, t, **cond)
        return out


@dataclass(frozen=True)
class AGD(Method):
    """Trained along the trajectories that `solver` takes in `calls` guided calls; `rank` is the adapters'.

    The student is told w, any in [1, w_max], and sampled at `guidance` unless told otherwise.
    """

    solver: str = "dpmpp_2m"
    calls: int = 10
    rank: int = 8
    w_max: float = 6.0
    guidance: float = 2.0

    recipe: ClassVar = Recipe(4_000, 64, 2e-3, ema=0.999, clip=1.0)

    def check(self, teacher: Teacher) -> None:
        if self.rank < 1:
            raise ValueError(f"rank = {self.rank}: the adapters have a rank of 1 or more")
        if not 1 <= self.guidance <= self.w_max or self.w_max == 1:
            raise ValueError(f"guidance = {self.guidance:g} lies outside [1, w_max] = [1, {self.w_max:g}], w_max > 1")
        if teacher.denoiser.guidance is None:
            raise ValueError("the teacher has no guidance to distil")
        _trajectory(teacher.schedule, self.solver, self.calls)
        for budget in BUDGETS:
            self.sampler(teacher.schedule).plan(teacher.schedule, budget)

    def student(self, teacher: Teacher) -> nn.Module:
        return ScaleAdapted(copy.deepcopy(teacher.network), self.rank)

    def loss(self, players: Players, turn: str, batch: Batch) -> Tensor:
        schedule = players.teacher.schedule
        w = 1 + (self.w_max - 1) * batch.draws.uniform(LOSS)
        x, t, D = self._guided(players.teacher, batch, w)
        told = {**batch.cond, "w": torch.from_numpy(w).to(x)}
        each = {k: v.repeat(self.calls, *[1] * (v.ndim - 1)) for k, v in told.items()}
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        weight = alpha**2 / (alpha**2 + sigma**2)  # the ODE forgets errors of D where there is little signal
        return weighted(weight, l2(players.student.at_each(x, t, "data", each), D))

    @torch.no_grad()
    def _guided(self, teacher: Teacher, batch: Batch, w: Array) -> tuple[Tensor, Array, Tensor]:
        """All states of a guided trajectory a sample, (calls B, *shape), their times and guided data predictions."""
        schedule, plan = teacher.schedule, _trajectory(teacher.schedule, self.solver, self.calls)
        met: list[tuple[Tensor, Array, Tensor]] = []

        def model(x: Tensor, t: Array) -> Tensor:
            met.append((x, t, teacher.denoiser.at_each(x, t, "data", batch.cond, w)))
            A, B = conversion("data", plan.predicts, float(schedule.alpha(t[0])), float(schedule.sigma(t[0])))
            return A * met[-1][2] + B * x

        start = batch.noise(LOSS + 1) * schedule.prior_std(schedule.t_max)
        plan.run(np.zeros(len(start), int), model, start)
        x, t, D = zip(*met, strict=True)
        return torch.cat(x), np.concatenate(t), torch.cat(D)

    def sampler(self, schedule: Schedule, progress: float = 1.0) -> FewStep:
        accepts = (1.0, self.w_max)
        return FewStep(
            self.solver, grid=usual_grid(schedule), budgets=BUDGETS, guidance=self.guidance, accepts=accepts,
            embedded=True,
        )  # fmt: skip


@lru_cache(maxsize=8)
def _trajectory(schedule: Schedule, solver: str, calls: int) -> Stacked:
    """The solver's plan, to run with a scale for each sample."""
    plan = solvers.method(solver).build(schedule, calls, usual_grid(schedule))
    if not isinstance(plan, solvers.Plan):
        raise ValueError(f"solver = {solver}: its steps are not known beforehand")
    return Stacked([plan])
