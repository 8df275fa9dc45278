"""A multistep solver's coefficients and times, all at once, down the gradient of the error at the end.

The unknowns are in units in which each does about as much: coefficients move the state by the error's size, in
directions that the registers' covariance makes independent; times move by gaps in lambda that grow e-fold.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solvers.gradient import run
from solvers.model import STEP
from solvers.schedule import Array, Schedule
from solvers.tune.least_squares import RIDGE, Examples, Fit, Multistep


class _TimeOfLam(torch.autograd.Function):
    """t of a tensor of lambdas, differentiable: schedules are numpy."""

    @staticmethod
    def forward(ctx: Any, lam: Tensor, schedule: Schedule) -> Tensor:
        at = lam.detach().cpu().numpy()
        t, low, high = (torch.from_numpy(np.asarray(schedule.t_of_lam(at + h))).to(lam) for h in (0.0, -STEP, STEP))
        ctx.save_for_backward((high - low) / (2 * STEP))
        return t

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.saved_tensors[0], None


@dataclass(frozen=True)
class Neighbourhood:
    """The solvers around a fit, at `log_gaps` between two lambdas, by a point: the fit itself is (0, ..., 0).

    A point has a number for each coefficient, a step's being weights of the columns of its `axes`, and one for each
    gap's logarithm.
    """

    examples: Examples
    fit: Fit
    ends: tuple[float, float]
    log_gaps: Tensor
    axes: Sequence[Tensor]

    @classmethod
    def of(cls, examples: Examples, fit: Fit, ends: tuple[float, float], log_gaps: Array) -> "Neighbourhood":
        roots = [torch.linalg.cholesky(gram + RIDGE * gram.diagonal().diag()) for gram in fit.grams]
        axes = [fit.error * torch.linalg.inv(root).T for root in roots]
        return cls(examples, fit, ends, torch.from_numpy(log_gaps).to(axes[0]), axes)

    @property
    def centre(self) -> Tensor:
        return self.log_gaps.new_zeros(sum(map(len, self.axes)) + len(self.log_gaps))

    def solver(self, point: Tensor) -> Multistep:
        """Its coefficients, and its times between the ends, are tensors."""
        given = self.fit.solver
        *moves, growth = torch.split(point, [*map(len, self.axes), len(self.log_gaps)])
        rows: list[Any] = [
            point.new_tensor(row) + axes @ move
            for row, axes, move in zip(given.coefficients, self.axes, moves, strict=True)
        ]
        first, last = self.ends
        lam = first + (last - first) * (self.log_gaps + growth).softmax(0).cumsum(0)[:-1]
        inner = _TimeOfLam.apply(lam, self.examples.denoiser.schedule)
        return Multistep([given.times[0], *inner, given.times[-1]], rows, given.memory)

    def error(self, point: Tensor) -> Tensor:
        """The root mean square difference at the end, differentiable with respect to the point."""
        examples, program = self.examples, self.solver(point).instructions()
        x = run(program, examples.denoiser, "data", examples.start, examples.cond)[program[-1].out]
        return (x - examples.exact.at(self.fit.solver.times[-1])).double().square().mean().sqrt()


def descend(around: Neighbourhood, gradients: int) -> tuple[Multistep, float]:
    """The best solver that L-BFGS finds with about that many gradients, and its error."""
    point = around.centre.requires_grad_()
    found = [(around.fit.error, around.centre)]
    optimiser = torch.optim.LBFGS([point], max_iter=gradients, max_eval=gradients, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        error = around.error(point)
        found.append((error.item(), point.detach().clone()))
        loss = (error / around.fit.error).square()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    error, best = min(found, key=lambda one: one[0])
    solver = around.solver(best)
    rows = [[float(c) for c in row] for row in solver.coefficients]
    return Multistep([float(t) for t in solver.times], rows, solver.memory), error
