"""The network as solvers see it: any prediction type on any schedule, guided or not, and every call counted."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import exp, expm1, inf
from typing import Literal

import torch
from torch import Tensor

from solvers.schedule import Schedule

Prediction = Literal["noise", "data", "v", "velocity"]
PREDICTIONS: tuple[Prediction, ...] = ("noise", "data", "v", "velocity")
Cond = Mapping[str, Tensor]


def _weights(predicts: Prediction, alpha: float, sigma: float) -> tuple[float, float]:
    """(p, q) such that the prediction is p x_0 + q eps, where x = alpha x_0 + sigma eps."""
    return {"data": (1.0, 0.0), "noise": (0.0, 1.0), "v": (-sigma, alpha), "velocity": (-1.0, 1.0)}[predicts]


def conversion(source: Prediction, target: Prediction, alpha: float, sigma: float) -> tuple[float, float]:
    """(A, B) such that target = A source + B x at the level (alpha, sigma)."""
    p, q = _weights(source, alpha, sigma)
    p_to, q_to = _weights(target, alpha, sigma)
    det = p * sigma - q * alpha
    return (p_to * sigma - q_to * alpha) / det, (q_to * p - p_to * q) / det


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: out = null + w (cond - null).  Ho & Salimans 2022, arXiv 2207.12598.

    `null` gives, for each condition, the value that stands for its absence.  w is `scale` where sigma/alpha lies in
    `interval` = (low, high] and 1, at the price of one forward, elsewhere (Kynkaanniemi et al. 2024, arXiv 2404.07724).
    With `cfgpp`, the times of the sampler's grid, `scale` is the lambda of CFG++ (Chung et al. 2024, arXiv 2406.08070):
    data guided by lambda, noise not at all, which for DDIM's step of length h is w = lambda / (1 - e^-h).
    """

    scale: float
    null: Mapping[str, int]
    interval: tuple[float, float] = (0.0, inf)
    cfgpp: tuple[float, ...] = ()

    def at(self, schedule: Schedule, t: float) -> float:
        """w at time t; raises ValueError for a time that is not a step's start on CFG++'s grid."""
        lam = float(schedule.lam(t))
        low, high = self.interval
        if not low < exp(-lam) <= high:
            return 1.0
        if not self.cfgpp:
            return self.scale
        following = [s for s in self.cfgpp if s < t * (1 - 1e-12)]
        if not following:
            raise ValueError(f"CFG++ needs the time that follows t = {t}: its grid ends at {min(self.cfgpp)}")
        return self.scale / -expm1(lam - float(schedule.lam(max(following))))


class Denoiser:
    """network(x, t, **cond) on `schedule`, where x is (B, *shape) and t is (B,); it predicts `predicts`.

    `calls` counts evaluations of the (guided) denoiser, `forwards` those of the network beneath it.
    """

    def __init__(
        self,
        network: Callable[..., Tensor],
        schedule: Schedule,
        predicts: Prediction = "noise",
        guidance: Guidance | None = None,
    ) -> None:
        if predicts not in PREDICTIONS:
            raise ValueError(f"predicts must be one of {', '.join(PREDICTIONS)}, not {predicts!r}")
        self.network = network
        self.schedule = schedule
        self.predicts = predicts
        self.guidance = guidance
        self.calls = 0
        self.forwards = 0
        self._levels: dict[tuple[Prediction, float], tuple[float, float]] = {}
        self._scales: dict[float, float] = {}

    def __call__(self, x: Tensor, t: float, predicts: Prediction | None = None, cond: Cond | None = None) -> Tensor:
        """The prediction asked for (by default the network's own) at time t, in x's dtype."""
        out, scale, _ = self.scaled(x, t, predicts or self.predicts, cond)
        return out if scale == 1 else out * scale

    def scaled(self, x: Tensor, t: float, predicts: Prediction, cond: Cond | None = None) -> tuple[Tensor, float, bool]:
        """A tensor, the factor that makes it the prediction asked for, and whether the tensor is a fresh one."""
        self.calls += 1
        dtype = torch.promote_types(x.dtype, torch.float32)  # a half-precision t would be another t
        out = self._guided(x, torch.full((len(x),), t, dtype=dtype, device=x.device), t, cond or {}).to(x.dtype)
        if predicts == self.predicts:
            return out, 1.0, False
        if (predicts, t) not in self._levels:  # a plan's times come back in every batch
            level = float(self.schedule.alpha(t)), float(self.schedule.sigma(t))
            self._levels[predicts, t] = conversion(self.predicts, predicts, *level)
        A, B = self._levels[predicts, t]
        return torch.add(x, out, alpha=A / B), B, True  # B is not 0 between different parametrisations

    def _guided(self, x: Tensor, t: Tensor, time: float, cond: Cond) -> Tensor:
        if self.guidance is None or (scale := self._scale(self.guidance, time)) == 1:
            return self._forward(x, t, cond)
        null = {k: torch.full_like(v, self.guidance.null[k]) for k, v in cond.items()}
        without = self._forward(x, t, null)
        return torch.lerp(without, self._forward(x, t, cond), scale)

    def _scale(self, guidance: Guidance, t: float) -> float:
        if t not in self._scales:
            self._scales[t] = guidance.at(self.schedule, t)
        return self._scales[t]

    def _forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        self.forwards += 1
        return self.network(x, t, **cond)
