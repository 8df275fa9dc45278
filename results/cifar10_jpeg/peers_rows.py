"""What a row of the comparison is: a scheduler of diffusers and Fewstep's solver of the same method, side by side."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor, nn
from torch_fidelity.metric_fid import (  # type: ignore[import-untyped]
    KEY_METRIC_FID,
    fid_features_to_statistics,
    fid_statistics_to_metric,
)

import solvers
from bench.checkpoints import Checkpoint, Task, load
from bench.checkpoints.base import replica
from bench.checkpoints.edm.layers import one_hot
from bench.checkpoints.edm.precondition import EDMPrecond
from bench.environment import environment
from bench.errors import UsageError
from bench.measure.clock import timed
from bench.metrics import Chunk, Context, make_metric
from bench.metrics.frechet import Frechet
from bench.runner import find_device
from bench.stats import Estimate, difference
from distill.denoising import Preconditioned
from solvers.grid import make_grid

Row = dict[str, Any]
SEED, SIDES = 0, ("diffusers", "fewstep")
DATA = {"prediction_type": "sample", "use_karras_sigmas": True}
BELOW_15 = {"lower_order_final": "below_15"}  # as diffusers has it


@dataclass(frozen=True)
class Pair:
    """A scheduler of diffusers and Fewstep's solver of the same method.

    Schedulers of EDM's call the U-Net and precondition by themselves, others are given the network's data prediction;
    states of those that are `vp` are x / sqrt(1 + sigma^2).
    """

    scheduler: str
    solver: str
    config: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    edm: bool = False
    vp: bool = False

    def steps(self, nfe: int) -> int:
        """As many as the budget pays for: Heun's last takes one call, every other one two."""
        return (nfe + 1) // 2 if self.solver == "heun" else nfe

    def ready(self, c: Checkpoint, steps: int, device: torch.device) -> Any:
        """The scheduler before the first of so many steps."""
        levels = {"sigma_min": c.schedule.t_end, "sigma_max": c.schedule.t_max}
        own = {"sigma_data": c.network.sigma_data} if self.edm else DATA
        made = getattr(diffusers, self.scheduler).from_config({**levels, **own, **self.config})
        made.set_timesteps(steps, device=device)
        made.set_begin_index(0)  # else it looks its first timestep up, and of two that are equal it takes the second
        return made

    def plan(self, c: Checkpoint, steps: int) -> solvers.Plan:
        """Fewstep's, at the scheduler's own sigmas, of which Heun's has most twice."""
        sigmas = self.ready(c, steps, torch.device("cpu")).sigmas.double().unique().flip(0)
        made = solvers.plan(self.solver, c.schedule, times=sigmas.clamp(max=c.schedule.t_max).tolist(), **self.options)
        assert isinstance(made, solvers.Plan)
        return made


PAIRS = (
    Pair("EDMEulerScheduler", "euler", edm=True),
    Pair("EDMDPMSolverMultistepScheduler", "dpmpp_2m", {"solver_order": 2}, BELOW_15, edm=True),
    Pair("EDMDPMSolverMultistepScheduler", "dpmpp_3m", {"solver_order": 3}, BELOW_15, edm=True),
    Pair("HeunDiscreteScheduler", "heun"),
    Pair("UniPCMultistepScheduler", "unipc", {"solver_order": 2}, {"order": 2}, vp=True),
    Pair("UniPCMultistepScheduler", "unipc", {"solver_order": 3}, {"order": 3}, vp=True),
)


def unet(network: nn.Module, x: Tensor, c_noise: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
    """The network without its preconditioning."""
    if isinstance(network, EDMPrecond):
        found: Tensor = network.model(x, c_noise, one_hot(cond["y"], network.label_dim).to(x.dtype) if cond else None)
    else:
        assert isinstance(network, Preconditioned)
        found = network.network(x, c_noise, **cond)
    return found


@torch.no_grad()
def trajectory(pair: Pair, scheduler: Any, network: nn.Module, x: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
    """What a pipeline's loop makes of x at the scheduler's first sigma."""
    sigmas = scheduler.sigmas.tolist()
    x = x / (1 + sigmas[0] ** 2) ** 0.5 if pair.vp else x
    for t, sigma in zip(scheduler.timesteps, sigmas[:-1], strict=True):
        if pair.edm:
            out = unet(network, scheduler.scale_model_input(x, t), t.expand(len(x)), cond)
        else:
            level = torch.full((), sigma, device=x.device).expand(len(x))
            out = network(x * (1 + sigma**2) ** 0.5 if pair.vp else x, level, **cond)
        x = scheduler.step(out, t, x, return_dict=False)[0]
    return x


class Comparison:
    """All that rows have in common; raises UsageError for what cannot be compared."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked, self.c, self.device = asked, load(asked.checkpoint), find_device(asked.device)
        if not isinstance(self.c.network, EDMPrecond | Preconditioned):
            raise UsageError(f"checkpoint {asked.checkpoint}: its network is not preconditioned as EDM's are")
        metric = make_metric(self.c.metrics[0], Context(self.c, SEED, Task(), asked.out, self.device))
        if not isinstance(metric, Frechet):
            raise UsageError(f"checkpoint {asked.checkpoint}: its metric {metric.name} is no Frechet distance")
        self.metric, self.network = metric, replica(self.c.network, self.device, torch.float32)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # cuDNN's default is to round
        self.settings = {
            "checkpoint": self.c.name, "digest": self.c.digest, "metric": metric.name, "seed": SEED,
            "samples": asked.samples, "batch": asked.batch, "rounds": asked.rounds,
            "device": environment(self.device)["device"], "threads": torch.get_num_threads(),
            "versions": {name: version(name) for name in ("diffusers", "torch", "torch-fidelity")},
        }  # fmt: skip

    def once(self, pair: Pair, plan: solvers.Plan, start: int, turn: int) -> tuple[list[Tensor], list[float]]:
        """A batch by both SIDES, and the milliseconds of sampling it; which of them goes first alternates."""
        x = self.c.latents(SEED, start, self.asked.batch, plan.times[0]).to(self.device, torch.float32)
        cond = self.c.conditions(Task(), SEED, start, self.asked.batch, self.device)
        scheduler = pair.ready(self.c, len(plan.times) - 1, self.device)
        denoiser = solvers.Denoiser(self.network, self.c.schedule, self.c.predicts)
        found: dict[str, Tensor] = {}
        works = {
            "diffusers": lambda: found.update(diffusers=trajectory(pair, scheduler, self.network, x, cond)),
            "fewstep": lambda: found.update(fewstep=solvers.sample(plan, denoiser, x, cond=cond)),
        }
        ms = {side: timed(works[side], self.device)[0] for side in SIDES[:: (-1) ** turn]}
        assert denoiser.calls == len(scheduler.timesteps) == plan.nfe
        return [found[side] for side in SIDES], [ms[side] for side in SIDES]

    def row(self, pair: Pair, plan: solvers.Plan) -> Row:
        """A round a batch; where more are asked for, the first batch again, for its time alone."""
        self.once(pair, plan, 0, 0)  # warms up
        features: list[list[Any]] = [[], []]
        ms, largest, squares = [], 0.0, []
        batches = self.asked.samples // self.asked.batch
        for k in range(max(batches, self.asked.rounds)):
            start = k * self.asked.batch if k < batches else 0
            found, both = self.once(pair, plan, start, k)
            ms.append(both)
            if k < batches:
                apart = (found[0] - found[1]).double()
                largest = max(largest, float(apart.abs().max()))
                squares.append([float((apart**2).mean()), float((found[1].double() ** 2).mean())])
                for x, parts in zip(found, features, strict=True):
                    parts.append(self.metric.extract(Chunk.of(start, x, self.c)))
        rms, scale = np.sqrt(np.mean(squares, axis=0))
        exact = make_grid("edm", self.c.schedule, len(plan.times) - 1).times[:-1]
        return {
            "calls": plan.nfe, "scale": float(scale), "largest": largest / float(scale), "rms": float(rms / scale),
            "grid": float(np.abs(np.array(plan.times[:-1]) / exact - 1).max()),
            **self.numbers([np.concatenate(parts) for parts in features], plan),
            "ms": dict(zip(SIDES, np.median(ms, axis=0).tolist(), strict=True)),
            "ratio": np.quantile([ours / theirs for theirs, ours in ms], [0.25, 0.5, 0.75]).tolist(),
        }  # fmt: skip

    def numbers(self, features: Sequence[Any], plan: solvers.Plan) -> Row:
        """The metric of both sides, its paired difference, and torch-fidelity's number of the same features."""
        to, found, estimates = self.metric.reference.gaussian, {}, []
        for side, x in zip(SIDES, features, strict=True):
            (value,) = self.metric.compute(x, plan.times)
            estimates.append(Estimate(value.value, value.se, value.n, parts=value.parts))
            statistics = fid_features_to_statistics(torch.from_numpy(x).double())
            theirs = fid_statistics_to_metric(statistics, {"mu": to.mean, "sigma": to.covariance}, verbose=False)
            found[side] = {"value": value.value, "se": value.se, "torch_fidelity": theirs[KEY_METRIC_FID]}
        gap = difference(estimates[1], estimates[0])
        return {**found, "difference": {"value": gap.value, "se": gap.se}}
