"""The network as solvers see it: any prediction type on any schedule, guided or not, and every call counted."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import expm1, inf
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from solvers.schedule import Array, Schedule

Prediction = Literal["noise", "data", "v", "velocity"]
PREDICTIONS: tuple[Prediction, ...] = ("noise", "data", "v", "velocity")
PREDICTION_TYPES: dict[str, Prediction] = {  # what diffusers calls them
    "epsilon": "noise", "sample": "data", "v_prediction": "v", "flow_prediction": "velocity",
}  # fmt: skip
Cond = Mapping[str, Tensor]


STEP = 1e-5  # relative, of the central difference that is a schedule's slope
_TIMES = {torch.float16: torch.float32, torch.bfloat16: torch.float32}  # a half-precision t would be another t
Level = Any  # a float64 number, or one a sample


def _weights(predicts: Prediction, alpha: Level, sigma: Level) -> tuple[Level, Level]:
    """(p, q) such that the prediction is p x_0 + q eps, where x = alpha x_0 + sigma eps."""
    return {"data": (1.0, 0.0), "noise": (0.0, 1.0), "v": (-sigma, alpha), "velocity": (-1.0, 1.0)}[predicts]


def conversion(source: Prediction, target: Prediction, alpha: Level, sigma: Level) -> tuple[Level, Level]:
    """(A, B) such that target = A source + B x at the level (alpha, sigma)."""
    p, q = _weights(source, alpha, sigma)
    p_to, q_to = _weights(target, alpha, sigma)
    det = p * sigma - q * alpha
    return (p_to * sigma - q_to * alpha) / det, (q_to * p - p_to * q) / det


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: out = null + w (cond - null).  Ho & Salimans 2022, arXiv 2207.12598.

    `null` gives, for each condition, what stands for its absence: a value, a tensor of one row, or None for a condition
    that guidance does not concern.  w is `scale` where
    sigma/alpha lies in `interval` = (low, high] and 1, at the price of one forward, elsewhere (Kynkaanniemi et al.
    2024, arXiv 2404.07724).  With `cfgpp`, the times of the sampler's grid, `scale` is the lambda of CFG++ (Chung et
    al. 2024, arXiv 2406.08070): data guided by lambda, noise not at all, which for DDIM's step of length h is
    w = lambda / (1 - e^-h).
    """

    scale: float
    null: Mapping[str, int | Tensor | None]
    interval: tuple[float, float] = (0.0, inf)
    cfgpp: tuple[float, ...] = ()

    def at(self, schedule: Schedule, t: float) -> float:
        """w at time t; raises ValueError for a time that is not a step's start on CFG++'s grid."""
        low, high = self.interval
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        if not low * alpha < sigma <= high * alpha and not (alpha == 0 and high == inf):
            return 1.0
        if not self.cfgpp:
            return self.scale
        following = [s for s in self.cfgpp if s < t * (1 - 1e-12)]
        if not following:
            raise ValueError(f"CFG++ needs the time that follows t = {t}: its grid ends at {min(self.cfgpp)}")
        return self.scale / -expm1(float(schedule.lam(t)) - float(schedule.lam(max(following))))


class _Levels(torch.autograd.Function):
    """(alpha, sigma) of a tensor of times, differentiable in both modes: schedules are numpy."""

    @staticmethod
    def forward(t: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        s = t.detach().double().cpu().numpy().copy()  # sigma(t) may be t itself, and t an expanded tensor
        low, high = s * (1 - STEP), s * (1 + STEP)
        slopes = [(f(high) - f(low)) / (high - low) for f in (schedule.alpha, schedule.sigma)]
        values = [schedule.alpha(s), schedule.sigma(s), *slopes]
        alpha, sigma, slope_alpha, slope_sigma = (torch.as_tensor(v, dtype=t.dtype, device=t.device) for v in values)
        return alpha, sigma, slope_alpha, slope_sigma

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(*output[2:])
        ctx.save_for_forward(*output[2:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        slope_alpha, slope_sigma = ctx.saved_tensors
        return grads[0] * slope_alpha + grads[1] * slope_sigma, None

    @staticmethod
    def jvp(ctx: Any, t_dot: Tensor, _: None) -> tuple[Tensor, Tensor, None, None]:
        slope_alpha, slope_sigma = ctx.saved_tensors
        return t_dot * slope_alpha, t_dot * slope_sigma, None, None


def levels(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma at times t, which may be differentiated with respect to, to 1e-9 of their slopes."""
    alpha, sigma, *_ = _Levels.apply(t, schedule)
    return alpha, sigma


class Denoiser:
    """network(x, t, **cond) on `schedule`, where x is (B, *shape) and t is (B,); it predicts `predicts`.

    A time that all samples share is one number expanded to (B,), of stride 0: a network may embed it once.

    `calls` counts evaluations of the (guided) denoiser, `forwards` those of the network beneath it, `evaluated`
    and `passed` the samples in them: B times as many, unless a sampler calls it on parts of a batch.  `tangents` and
    `backwards` count samples passed with a derivative, as whoever takes one says.
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
        self.evaluated = 0
        self.passed = 0
        self.tangents = 0
        self.backwards = 0
        self._scales: dict[float, float | None] = {}

    def __call__(self, x: Tensor, t: float, predicts: Prediction | None = None, cond: Cond | None = None) -> Tensor:
        """The prediction asked for (by default the network's own) at time t, in x's dtype."""
        out = self.forward(x, t, cond)
        if predicts is None or predicts == self.predicts:
            return out
        A, B = conversion(self.predicts, predicts, float(self.schedule.alpha(t)), float(self.schedule.sigma(t)))
        return torch.add(A * out, x, alpha=B)

    def forward(self, x: Tensor, t: float, cond: Cond | None = None) -> Tensor:
        """The network's own prediction at time t, guided and counted, in x's dtype."""
        times = torch.full((), t, dtype=_TIMES.get(x.dtype, x.dtype), device=x.device).expand(len(x))
        return self._evaluate(x, times, None if self.guidance is None else self._scale(t), cond or {})

    def at_each(
        self, x: Tensor, t: Array, predicts: Prediction, cond: Cond | None = None, scales: Array | None = None
    ) -> Tensor:
        """The prediction asked for at a time of its own for each sample, t (B,), in x's dtype: one call.

        `scales` (B,) are of guidance, in place of its own.  What may be differentiated counts as such.  Raises
        ValueError for scales where there is no guidance.
        """
        if scales is not None and self.guidance is None:
            raise ValueError("scales of guidance were given, and there is no guidance that says what null is")
        each = [self._scale(float(s)) for s in t] if scales is None else list(scales)
        scale = None if set(each) == {None} else column([1.0 if s is None else s for s in each], x)
        times = torch.from_numpy(t).to(x.device, _TIMES.get(x.dtype, x.dtype))
        before = self.passed
        out = self._evaluate(x, times, scale, cond or {})
        self.backwards += (self.passed - before) * out.requires_grad
        if predicts == self.predicts:
            return out
        A, B = conversion(self.predicts, predicts, self.schedule.alpha(t), self.schedule.sigma(t))
        return column(A, x) * out + column(B, x) * x

    def differentiable(self, x: Tensor, t: Tensor, predicts: Prediction, cond: Cond | None = None) -> Tensor:
        """The prediction asked for at time t (), which like x (B, *shape) may be differentiated with respect to."""
        out = self._evaluate(
            x, t.to(_TIMES.get(x.dtype, x.dtype)).expand(len(x)), self._scale(float(t.detach())), cond or {}
        )
        if predicts == self.predicts:
            return out
        A, B = conversion(self.predicts, predicts, *levels(self.schedule, t))
        converted: Tensor = A * out + B * x
        return converted.to(x.dtype)

    def cost(self, t: float) -> int:
        """Forwards of the network that one call at time t takes: 2 where guidance acts."""
        return 1 if self._scale(t) is None else 2

    def _scale(self, t: float) -> float | None:
        """Guidance's scale at time t; None where it does not act."""
        if self.guidance is None or (self.guidance.scale == 1 and not self.guidance.cfgpp):
            return None
        if t not in self._scales:  # a plan's times come back in every batch
            w = self.guidance.at(self.schedule, t)
            self._scales[t] = None if w == 1 else w
        return self._scales[t]

    def _evaluate(self, x: Tensor, t: Tensor, scale: float | Tensor | None, cond: Cond) -> Tensor:
        self.count(x.shape[0], 1, 1 if scale is None else 2)
        out = self.network(x, t, **cond)
        if scale is not None and self.guidance is not None:
            null = {k: _absent(v, self.guidance.null[k]) for k, v in cond.items()}
            out = torch.lerp(self.network(x, t, **null).to(x.dtype), out.to(x.dtype), scale)
        return out if out.dtype is x.dtype else out.to(x.dtype)

    def count(self, samples: int, calls: int, forwards: int) -> None:
        """Add to the counters; a compiled graph runs no Python, so whoever runs it counts for it."""
        if not torch.compiler.is_dynamo_compiling():  # is_compiling() speaks of other threads too
            self.calls += calls
            self.forwards += forwards
            self.evaluated += calls * samples
            self.passed += forwards * samples


def _absent(condition: Tensor, null: int | Tensor | None) -> Tensor:
    """What stands for the absence of a condition (B, ...), once a sample."""
    if null is None:
        return condition
    return null.expand_as(condition) if isinstance(null, Tensor) else torch.full_like(condition, null)


def column(values: ArrayLike, x: Tensor) -> Tensor:
    """One number a sample, shaped to multiply x (B, *shape), in x's dtype."""
    rows = np.broadcast_to(np.asarray(values, np.float64), len(x)).copy()
    return torch.from_numpy(rows).to(x.device, x.dtype).reshape(-1, *[1] * (x.ndim - 1))
