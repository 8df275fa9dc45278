"""Many plans of one shape run at once, each sample its own: coefficients become columns, one row a plan.

A solver's plans over different intervals differ in their numbers alone, so that a batch in which every sample lies in
an interval of its own, as distillation draws them, is one pass of network calls.
"""

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from solvers.coefficient import Pixelwise
from solvers.execute import threshold
from solvers.model import column
from solvers.plan import ONES, START, Combine, Evaluate, Instruction, Plan, PlanError, Threshold
from solvers.schedule import Array

Model = Callable[[Tensor, Array], Tensor]  # (B, *shape) at times (B,) -> the prediction the plans are in
Rows = list[tuple[int, Array]]  # a register and its coefficient in each plan


class Stacked:
    """Plans that make the same calls in the same order, without noise; raises PlanError for others."""

    def __init__(self, plans: Sequence[Plan]) -> None:
        if not plans:
            raise PlanError("no plan to stack")
        first = plans[0]
        for plan in plans:
            if plan.draws or (plan.predicts, plan.schedule) != (first.predicts, first.schedule):
                raise PlanError(f"{plan.method} cannot be stacked: it draws noise, or is for another network")
            if [_kind(i) for i in plan.instructions] != [_kind(i) for i in first.instructions]:
                raise PlanError(f"{plan.method}: plans that call the network differently cannot be stacked")
        self.predicts = first.predicts
        self.schedule = first.schedule
        self.calls = first.nfe
        self._steps = [_stack(column) for column in zip(*(plan.instructions for plan in plans), strict=True)]

    def run(self, which: Array, model: Model, x: Tensor) -> Tensor:
        """What plan `which[i]` makes of sample i of x (B, *shape), with which (B,) whole numbers."""
        registers = {START: x, ONES: x.new_ones(())}
        for instruction, rows in self._steps:
            if isinstance(instruction, Evaluate):
                y = model(registers[instruction.state], rows[0][1][which])
            elif isinstance(instruction, Threshold):
                y = threshold(registers[instruction.register], instruction.rule)
            else:
                y = sum((column(c[which], x) * registers[r] for r, c in rows), start=x.new_zeros(()))
            registers[instruction.out] = y
        return y


def _kind(instruction: Instruction) -> tuple[object, ...]:
    """What plans must have in common, instruction by instruction."""
    match instruction:
        case Evaluate(out, state):
            return Evaluate, out, state
        case Threshold(out, register, rule):
            return Threshold, out, register, rule
        case Combine(out):
            return Combine, out


def _stack(instructions: Sequence[Instruction]) -> tuple[Instruction, Rows]:
    """An instruction of all plans, with the time of a call or the coefficient of each register by plan."""
    if all(isinstance(i, Evaluate) for i in instructions):
        return instructions[0], [(0, np.array([i.t for i in instructions if isinstance(i, Evaluate)]))]
    terms = [{r: c for c, r in i.terms} if isinstance(i, Combine) else {} for i in instructions]
    if any(isinstance(c, Pixelwise) for of_plan in terms for c in of_plan.values()):
        raise PlanError("plans with coefficients of the image's shape cannot be stacked")
    there = dict.fromkeys(r for of_plan in terms for r in of_plan)
    return instructions[0], [(r, np.array([of_plan.get(r, 0.0) for of_plan in terms], np.float64)) for r in there]
