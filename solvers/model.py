"""The network as solvers see it: any prediction type on any schedule, guided or not, and every call counted."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
    """Classifier-free guidance: out = null + scale (cond - null).  Ho & Salimans 2022, arXiv 2207.12598.

    `null` gives, for each condition, the value that stands for its absence.
    """

    scale: float
    null: Mapping[str, int]


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
        self._conversions: dict[tuple[Prediction, float], tuple[float, float]] = {}

    def __call__(self, x: Tensor, t: float, predicts: Prediction | None = None, cond: Cond | None = None) -> Tensor:
        """The prediction asked for (by default the network's own) at time t, in x's dtype."""
        self.calls += 1
        dtype = torch.promote_types(x.dtype, torch.float32)  # a half-precision t would be another t
        out = self._guided(x, torch.full((len(x),), t, dtype=dtype, device=x.device), cond or {}).to(x.dtype)
        if predicts is None or predicts == self.predicts:
            return out
        A, B = self._conversion(predicts, t)
        return torch.add(A * out, x, alpha=B)

    def _conversion(self, predicts: Prediction, t: float) -> tuple[float, float]:
        """Kept once computed: a plan's times come back in every batch, and schedules cost more than the arithmetic."""
        if (predicts, t) not in self._conversions:
            level = float(self.schedule.alpha(t)), float(self.schedule.sigma(t))
            self._conversions[predicts, t] = conversion(self.predicts, predicts, *level)
        return self._conversions[predicts, t]

    def _guided(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        if self.guidance is None or self.guidance.scale == 1:
            return self._forward(x, t, cond)
        null = {k: torch.full_like(v, self.guidance.null[k]) for k, v in cond.items()}
        without = self._forward(x, t, null)
        return torch.lerp(without, self._forward(x, t, cond), self.guidance.scale)

    def _forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        self.forwards += 1
        return self.network(x, t, **cond)
