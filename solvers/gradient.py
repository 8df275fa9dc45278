"""A program run so that it can be differentiated: with respect to coefficients and times that are tensors.

Every network call is recomputed on the way back (gradient checkpointing), so what is kept of a run is its registers:
memory grows with the states, not with the network's activations.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from solvers.coefficient import Pixelwise
from solvers.execute import threshold
from solvers.model import Cond, Denoiser, Prediction
from solvers.plan import ONES, START, Evaluate, Instruction, Threshold


def run(
    instructions: Iterable[Instruction],
    denoiser: Denoiser,
    predicts: Prediction,
    x_T: Tensor,
    cond: Cond | None = None,
    checkpointed: bool = True,
    known: Mapping[int, Tensor] = MappingProxyType({}),
) -> dict[int, Tensor]:
    """Every register that the program writes, by its number, differentiable; the program draws no noise.

    `known` registers are there already, for the tail of a program.
    Backward passes are counted in `denoiser.backwards` as if the result's gradient were taken once; the evaluations
    that they repeat count themselves.
    """
    registers = {START: x_T, ONES: torch.ones_like(x_T), **known}
    for i in instructions:
        if isinstance(i, Evaluate):
            t = torch.as_tensor(i.t, dtype=torch.float64, device=x_T.device)
            before = denoiser.passed
            call = (denoiser.differentiable, registers[i.state], t, predicts, cond)
            registers[i.out] = checkpoint(*call, use_reentrant=False) if checkpointed else call[0](*call[1:])
            if torch.is_grad_enabled() and registers[i.out].requires_grad:
                denoiser.backwards += denoiser.passed - before
        elif isinstance(i, Threshold):
            registers[i.out] = threshold(registers[i.register], i.rule)
        else:
            terms = [registers[r] * _tensor(c, x_T) for c, r in i.terms]
            registers[i.out] = torch.stack(terms).sum(0)
    return registers


def _tensor(c: float | Pixelwise | Tensor, like: Tensor) -> Tensor:
    if isinstance(c, Pixelwise):
        return c.to(like.dtype, like.device)
    return torch.as_tensor(c, dtype=None if isinstance(c, Tensor) else torch.float64, device=like.device).to(like.dtype)
