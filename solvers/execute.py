"""Runs a plan on a denoiser."""

from collections.abc import Callable

import torch
from torch import Tensor

from solvers.model import Cond, Denoiser
from solvers.plan import Combine, Evaluate, Instruction, Plan


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
    wrote; `cond` goes to the network.  Raises ValueError when the denoiser's schedule is not the
    plan's or noise is missing.
    """
    if denoiser.schedule != plan.schedule:
        raise ValueError(f"the plan is for {plan.schedule}, the denoiser for {denoiser.schedule}")
    if plan.draws and noise is None:
        raise ValueError(f"{plan.method} needs {plan.draws} noise draws: pass noise")
    registers = {0: x_T}
    for instruction, dead in zip(plan.instructions, plan.dies, strict=True):
        if isinstance(instruction, Evaluate):
            out = denoiser(registers[instruction.state], instruction.t, plan.predicts, cond)
        else:
            out = _combine(instruction, registers, noise)
        registers[instruction.out] = out
        if callback is not None:
            callback(instruction, out)
        for register in dead:
            del registers[register]
    return registers[plan.instructions[-1].out]


def _combine(instruction: Combine, registers: dict[int, Tensor], noise: Callable[[int], Tensor] | None) -> Tensor:
    parts = [(c, registers[r]) for c, r in instruction.terms]
    if noise is not None:
        parts += [(c, noise(k)) for c, k in instruction.noise]
    (c, first), *rest = parts
    out = first * c
    for c, part in rest:
        out.add_(part, alpha=c)
    return out
