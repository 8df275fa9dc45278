"""Multistep coefficients in closed form: each state of a solver fitted to the exact one, given its own past.

After i + 1 calls all that a solver with one call a step can make is a combination of x_T and its outputs so far,
    x_{i+1} = a_i x_T + sum_{j <= i} b_ij m_j,
and the coefficients that bring it closest to the exact states at t_{i+1} of some samples solve a linear least-squares
problem, at no call.  The next output is then taken at that state, so later steps make up for what earlier ones miss.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot, isinf
from typing import Any

import torch
from torch import Tensor

import solvers
from solvers.model import Cond, Denoiser
from solvers.plan import START, Combine, Evaluate, Instruction, Plan
from solvers.schedule import Schedule
from solvers.tune.reference import Reference, reference

RIDGE = 1e-9  # of the mean square of each regressor: what float32 outputs tell apart, and no less
# How much the states before the end count: a solver that strays there to be better at the end is so for few samples
# alone, and others fall to another mode.
STRAY = 0.25


@dataclass(frozen=True)
class Multistep:
    """x_{i+1} from its outputs, data predictions, at falling `times`; `coefficients` has a row a step.

    A row weighs x_T and all outputs or, from step `memory` on, x_i and the last `memory` outputs: oldest first.
    """

    times: Sequence[Any]  # numbers, or in a program to be differentiated tensors, and so the coefficients
    coefficients: Sequence[Sequence[Any]]
    memory: int

    def instructions(self) -> list[Instruction]:
        program: list[Instruction] = []
        for i, row in enumerate(self.coefficients):
            registers = [2 * j + 1 for j in recalled(i, self.memory)]
            program.append(Evaluate(2 * i + 1, 2 * i, self.times[i]))
            program.append(Combine(2 * i + 2, tuple(zip(row, [kept(i, self.memory), *registers], strict=True))))
        return program

    def plan(self, schedule: Schedule) -> Plan:
        times = tuple(float(t) for t in self.times)
        return Plan("fitted", (), 0, "data", schedule, times, tuple(self.instructions()))


def recalled(i: int, memory: int) -> range:
    """The outputs that step i combines."""
    return range(max(0, i + 1 - memory), i + 1)


def kept(i: int, memory: int) -> int:
    """The register of the state that step i combines with them: x_T's while all outputs are at hand, else x_i's."""
    return START if i < memory else 2 * i


@dataclass(frozen=True)
class Fit:
    """A multistep solver fitted on some samples, with its outputs (B, *shape) there; all else is float64.

    `missed` is each state less the exact one, (n, numel), scaled so that the last one's norm is the root mean square
    error at the end, and the others' that of noise of variance 1 times STRAY.  `grams` has a matrix a step, the mean
    products of the k registers that it combines: (k, k).
    """

    solver: Multistep
    outputs: tuple[Tensor, ...]
    grams: tuple[Tensor, ...]
    missed: Tensor

    @property
    def error(self) -> float:
        return float(self.missed[-1].norm())

    @property
    def objective(self) -> float:
        return float(self.missed.norm())


@dataclass(frozen=True)
class Examples:
    """Samples with their exact trajectories, on which solvers that recall `memory` outputs are fitted."""

    denoiser: Denoiser
    start: Tensor  # x_T
    cond: Cond
    exact: Reference
    memory: int

    def fit(self, times: Sequence[float], known: Sequence[Tensor] = ()) -> Fit:
        """The fit on these times, of which the first `known` outputs need no call."""
        x, outputs, schedule = self.start, list(known), self.denoiser.schedule
        rows, grams, missed = list[list[float]](), list[Tensor](), list[Tensor]()
        for i, t in enumerate(times[1:]):
            if i == len(outputs):
                with torch.no_grad():
                    outputs.append(self.denoiser(x, times[i], "data", self.cond))
            state = self.start if i < self.memory else x
            regressors = torch.stack([state, *(outputs[j] for j in recalled(i, self.memory))]).double().flatten(1)
            target = self.exact.at(t).double().flatten()
            gram = regressors @ regressors.T / len(target)
            row = solve(gram, regressors @ target / len(target))
            x = (row @ regressors).reshape(x.shape).to(x)
            weight = 1.0 if i == len(times) - 2 else STRAY / hypot(schedule.alpha(t), schedule.sigma(t))
            rows.append(row.tolist())
            grams.append(gram)
            missed.append(weight * (x.double().flatten() - target) / len(target) ** 0.5)
        return Fit(Multistep(tuple(times), rows, self.memory), tuple(outputs), tuple(grams), torch.stack(missed))


def solve(gram: Tensor, moments: Tensor) -> Tensor:
    """The coefficients (k,) of regressors with these mean products (k, k), and these with what they come closest to."""
    scale = gram.diagonal().sqrt()
    ridge = RIDGE * torch.eye(len(scale), dtype=scale.dtype, device=scale.device)
    c: Tensor = torch.linalg.solve(gram / scale / scale[:, None] + ridge, moments / scale) / scale
    return c


def exact_trajectories(denoiser: Denoiser, x_T: Tensor, cond: Cond, calls: int) -> Reference:
    """The ODE's solution with `calls` calls; from where there is no signal one of them is a short step of DDIM."""
    schedule, t = denoiser.schedule, denoiser.schedule.t_max
    if isinf(schedule.lam(t)):
        t, calls = 0.999 * t, calls - 1
        x_T = solvers.sample(solvers.plan("ddim", schedule, times=[schedule.t_max, t]), denoiser, x_T, cond=cond)
    return reference(denoiser, x_T, cond, t, schedule.t_end, calls)
