"""Runs a plan on a denoiser, one tensor operation a term.

A plan is lowered once for what a network predicts.  The factor of a conversion moves into the coefficients that follow,
and a converted output that dies in a combination is written over by it: both spare passes over memory, which is all
that a solver costs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from solvers.coefficient import Pixelwise
from solvers.model import Cond, Denoiser, Prediction, conversion
from solvers.plan import ONES, START, Combine, Evaluate, Instruction, Noise, Plan, Procedure, Rule

NOTHING = -2  # a register that a sum of noise alone starts from, times 0
QUANTILE = 0.995  # of |x| in a sample, by dynamic thresholding


@dataclass(frozen=True, slots=True)
class _Call:
    """out = x + ratio x network(x), or the network's output itself; `scale` times that is the prediction."""

    state: int
    t: float
    factor: float  # of the state, which is 1 unless a converted output is evaluated
    ratio: float | None
    scale: float


@dataclass(frozen=True, slots=True)
class _Clip:
    register: int
    rule: Rule
    scale: float


@dataclass(frozen=True, slots=True)
class _Sum:
    """out = c x first + the rest; `scalar` is c as torch wants it, since making it costs half of the product."""

    first: int
    c: float | Tensor
    scalar: Tensor
    over: bool  # whether `first` may be written over
    terms: tuple[tuple[float, int], ...]
    noise: tuple[tuple[float, int], ...]
    pixelwise: tuple[tuple[Tensor, int], ...]


_Step = tuple[int, _Call | _Clip | _Sum, tuple[int, ...]]  # the register written, how, and the registers that die


def lower(plan: Plan, predicts: Prediction, dtype: torch.dtype, device: torch.device) -> tuple[_Step, ...]:
    """The plan's steps for a network that predicts `predicts`, on such states; made once, kept with the plan."""
    if (predicts, dtype, device) not in plan.programs:
        plan.programs[predicts, dtype, device] = tuple(_lowered(plan, predicts, dtype, device))
    steps: tuple[_Step, ...] = plan.programs[predicts, dtype, device]
    return steps


def _lowered(plan: Plan, predicts: Prediction, dtype: torch.dtype, device: torch.device) -> Iterator[_Step]:
    scale: dict[int, float] = {}  # of converted outputs, which are ours to write over
    for instruction, dead in zip(plan.instructions, plan.dies, strict=True):
        step: _Call | _Clip | _Sum
        if isinstance(instruction, Evaluate):
            factor = scale.get(instruction.state, 1.0)
            step = _Call(instruction.state, instruction.t, factor, None, 1.0)
            if predicts != plan.predicts:
                alpha, sigma = (float(f(instruction.t)) for f in (plan.schedule.alpha, plan.schedule.sigma))
                A, B = conversion(predicts, plan.predicts, alpha, sigma)  # B is 0 for no two different predictions
                step = _Call(instruction.state, instruction.t, factor, A / B, B)
                scale[instruction.out] = B
        elif isinstance(instruction, Combine):
            step = _sum(instruction, dead, scale, dtype, device)
        else:
            step = _Clip(instruction.register, instruction.rule, scale.get(instruction.register, 1.0))
            scale[instruction.out] = 1.0
        yield instruction.out, step, dead


def _sum(
    instruction: Combine, dead: tuple[int, ...], scale: dict[int, float], dtype: torch.dtype, device: torch.device
) -> _Sum:
    terms = [(c * scale.get(r, 1.0), r) for c, r in instruction.terms]
    ours = [k for k, (_, r) in enumerate(terms) if r in scale and r in dead]
    theirs = [k for k, (_, r) in enumerate(terms) if r != ONES]
    head, first = terms.pop((ours or theirs)[0]) if theirs else (0.0, NOTHING)
    c = head.to(dtype, device) if isinstance(head, Pixelwise) else head
    # A scalar of another dtype would be converted first.
    scalar = c if isinstance(c, Tensor) else torch.tensor(c, dtype=torch.promote_types(dtype, torch.float32))
    plain = tuple((c, r) for c, r in terms if not isinstance(c, Pixelwise))
    pixelwise = tuple((c.to(dtype, device), r) for c, r in terms if isinstance(c, Pixelwise))
    return _Sum(first, c, scalar, bool(ours), plain, instruction.noise, pixelwise)


@torch.no_grad()
def sample(
    plan: Plan | Procedure,
    denoiser: Denoiser,
    x_T: Tensor,
    noise: Noise | None = None,
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
    if not isinstance(plan, Plan):
        return plan.run(denoiser, x_T, noise, cond)
    tracing = torch.compiler.is_dynamo_compiling()
    steps = lower(plan, denoiser.predicts, x_T.dtype, x_T.device)
    registers: dict[int, Tensor] = {START: x_T, NOTHING: x_T, ONES: x_T.new_ones(())}
    for (out, step, dead), instruction in zip(steps, plan.instructions, strict=True):
        if isinstance(step, _Call):
            x = registers[step.state] if step.factor == 1 else registers[step.state] * step.factor
            y = denoiser.forward(x, step.t, cond)
            registers[out] = y if step.ratio is None else torch.add(x, y, alpha=step.ratio)
            del x, y  # a name would hold a dead register
        elif isinstance(step, _Sum):
            registers[out] = _summed(step, registers, noise, tracing)
        else:
            registers[out] = threshold(registers[step.register] * step.scale, step.rule)
        if callback is not None:
            callback(instruction, registers[out] * (step.scale if isinstance(step, _Call) else 1.0))
        for r in dead:
            del registers[r]
    return registers[plan.instructions[-1].out]


def _summed(step: _Sum, registers: dict[int, Tensor], noise: Noise | None, tracing: bool) -> Tensor:
    c, y = step.c if tracing else step.scalar, registers[step.first]
    y = y.mul_(c) if step.over else y * c
    for c, r in step.terms:
        y.add_(registers[r], alpha=c)
    for c, k in step.noise:
        y.add_(noise(k), alpha=c)  # type: ignore[misc]  # a plan with draws was refused without
    for each, r in step.pixelwise:
        y.addcmul_(registers[r], each)
    return y


def threshold(x: Tensor, rule: Rule) -> Tensor:
    """The data prediction x (B, *shape) pulled back to the range of the data; see Threshold."""
    if rule == "static":
        return x.clamp(-1, 1)
    S = torch.quantile(x.abs().flatten(1), QUANTILE, dim=1).clamp(min=1).reshape(-1, *[1] * (x.ndim - 1))
    return torch.clamp(x, -S, S) / S
