"""A plan run in the plainest way: a loop over its instructions on the bare network, which shares no code with ours.

No denoiser, no counting, no executor, no pass over memory saved: what stands beside ours in the gate's rounds.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import solvers
from solvers.coefficient import Coefficient, Pixelwise
from solvers.execute import threshold
from solvers.model import Cond, conversion
from solvers.plan import ONES, START, Combine, Evaluate, Noise, Plan, Threshold

Network = Callable[..., Tensor]


@dataclass(frozen=True)
class Call:
    """A network call at time t: guided by w, where w is not 1; then A out + B x."""

    t: float
    w: float
    A: float
    B: float


class Plain:
    """The plan on the network, its numbers looked up before; `like` knows what the network predicts, and guidance."""

    def __init__(self, plan: Plan, network: Network, like: solvers.Denoiser) -> None:
        self.plan, self.network, self.guidance = plan, network, like.guidance
        self.calls = {i.out: self._call(i.t, like) for i in plan.instructions if isinstance(i, Evaluate)}

    def _call(self, t: float, like: solvers.Denoiser) -> Call:
        schedule = self.plan.schedule
        A, B = conversion(like.predicts, self.plan.predicts, float(schedule.alpha(t)), float(schedule.sigma(t)))
        acts = self.guidance is not None and (self.guidance.scale != 1 or self.guidance.cfgpp)
        return Call(t, self.guidance.at(schedule, t) if acts and self.guidance else 1.0, A, B)

    @torch.no_grad()
    def __call__(self, x_T: Tensor, noise: Noise, cond: Cond) -> Tensor:
        """The samples (B, *shape) of x_T."""
        registers = {START: x_T, ONES: torch.ones_like(x_T)}
        for i in self.plan.instructions:
            match i:
                case Evaluate(out, state):
                    registers[out] = self._predict(self.calls[out], registers[state], cond)
                case Threshold(out, register, rule):
                    registers[out] = threshold(registers[register], rule)
                case Combine(out, terms, draws):
                    parts = [_as(c, x_T) * registers[r] for c, r in terms] + [c * noise(k) for c, k in draws]
                    registers[out] = sum(parts[1:], parts[0])
        return registers[self.plan.instructions[-1].out]

    def _predict(self, call: Call, x: Tensor, cond: Cond) -> Tensor:
        t = torch.full((), call.t, dtype=x.dtype, device=x.device).expand(len(x))  # as Denoiser gives it
        out = self.network(x, t, **cond).to(x.dtype)
        if call.w != 1 and self.guidance is not None:
            null = self.guidance.null
            absent = {k: v if null[k] is None else torch.zeros_like(v) + null[k] for k, v in cond.items()}
            nothing = self.network(x, t, **absent).to(x.dtype)
            out = nothing + call.w * (out - nothing)
        return call.A * out + call.B * x


def _as(c: Coefficient, x: Tensor) -> float | Tensor:
    return c.to(x.dtype, x.device) if isinstance(c, Pixelwise) else c
