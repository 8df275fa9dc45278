"""Runs a plan on a denoiser, one tensor operation a term.

A converted output is kept as a tensor and a factor that the coefficients take up later, and a register that dies in a
combination is written over by it: both spare passes over memory, which is all that a solver costs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from solvers.model import Cond, Denoiser
from solvers.plan import Combine, Evaluate, Instruction, Plan, Rule, Threshold

QUANTILE = 0.995  # of |x| in a sample, by dynamic thresholding


@dataclass(slots=True)
class _Register:
    """scale x tensor; `ours` when nothing but this register holds the tensor."""

    tensor: Tensor
    scale: float = 1.0
    ours: bool = False


@torch.no_grad()
def sample(
    plan: Plan,
    denoiser: Denoiser,
    x_T: Tensor,
    noise: Callable[[int], Tensor] | None = None,
    callback: Callable[[Instruction, Tensor], None] | None = None,
    cond: Cond | None = None,
) -> Tensor:
    """The sample that `plan` makes of x_T (B, *shape), in x_T's dtype; x_T is left as it was.

    `noise(k)` gives the k-th draw, (B, *shape), to a plan that needs draws; `callback` sees what each instruction
    wrote, in tensors of its own; `cond` goes to the network.  Raises ValueError when the denoiser's schedule is not the
    plan's or noise is missing.
    """
    if denoiser.schedule != plan.schedule:
        raise ValueError(f"the plan is for {plan.schedule}, the denoiser for {denoiser.schedule}")
    if plan.draws and noise is None:
        raise ValueError(f"{plan.method} needs {plan.draws} noise draws: pass noise")
    registers = {0: _Register(x_T)}
    for instruction, dead in zip(plan.instructions, plan.dies, strict=True):
        if isinstance(instruction, Combine):
            out = _combine(instruction, registers, dead, noise)
        elif isinstance(instruction, Evaluate):
            out = _Register(*denoiser.scaled(registers[instruction.state].tensor, instruction.t, plan.predicts, cond))
        else:
            out = _threshold(instruction, registers[instruction.register])
        registers[instruction.out] = out
        if callback is not None:
            callback(instruction, out.tensor * out.scale if out.ours else out.tensor)
        for register in dead:
            del registers[register]
    return registers[plan.instructions[-1].out].tensor


def _combine(
    instruction: Combine,
    registers: dict[int, _Register],
    dead: tuple[int, ...],
    noise: Callable[[int], Tensor] | None,
) -> _Register:
    parts = [(c * (register := registers[r]).scale, register.tensor) for c, r in instruction.terms]
    if noise is not None:
        parts += [(c, noise(k)) for c, k in instruction.noise]
    for k, (_, r) in enumerate(instruction.terms):
        if registers[r].ours and r in dead:
            c, out = parts.pop(k)
            out.mul_(c)
            break
    else:
        c, first = parts.pop(0)
        out = first * c
    for c, part in parts:
        out.add_(part, alpha=c)
    return _Register(out)


def _threshold(instruction: Threshold, register: _Register) -> _Register:
    return _Register(threshold(register.tensor * register.scale, instruction.rule), ours=True)


def threshold(x: Tensor, rule: Rule) -> Tensor:
    """The data prediction x (B, *shape) pulled back to the range of the data; see Threshold."""
    if rule == "static":
        return x.clamp(-1, 1)
    S = torch.quantile(x.abs().flatten(1), QUANTILE, dim=1).clamp(min=1).reshape(-1, *[1] * (x.ndim - 1))
    return torch.clamp(x, -S, S) / S
