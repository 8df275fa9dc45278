"""A multistep solver fitted to a checkpoint: every coefficient and time its own, non-stationary and without a formula.

The idea is that of bespoke non-stationary solvers (Shaul et al. 2024, arXiv 2403.01329), the search another one:
1. A few trajectories are solved with many calls.
2. Times start where the trajectories' data predictions change: equal shares of (speed in lambda)^p.
3. Coefficients are least squares on any times (solvers/tune/least_squares.py), so that what is missed at the end, and
   a little on the way, is a function of the times alone; Levenberg-Marquardt makes it small.  Its slope in t_i needs
   the calls from t_i on alone, and after each step Broyden's update corrects the slopes.
4. All coefficients and times can follow the gradient of the error at the end too (solvers/tune/descent.py).
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solvers.model import Cond
from solvers.schedule import Array, Schedule
from solvers.tune.base import Finding, Notes, Problem, tuner
from solvers.tune.descent import Neighbourhood, descend
from solvers.tune.least_squares import Examples, Fit, exact_trajectories
from solvers.tune.reference import Reference

POWERS = (0.25, 0.5)  # p of the times that are tried at the start
SHIFT = 0.05  # of a time in lambda, for a slope, in units of the gap that follows
STEPS = 3  # with the same slopes, but for Broyden's updates
LONGEST = 1.0  # change of a gap's logarithm in a step
DAMPING = (1e-2, 1e-4, 3.0, 5.0)  # at the start, at least; divided by after a step that helps, multiplied after others


@dataclass(frozen=True)
class Line:
    """The times between both ends of a trajectory as gaps in lambda, whatever their sum: exp(log_gaps), one a step."""

    schedule: Schedule
    first: float
    last: float

    @classmethod
    def of(cls, exact: Reference) -> "Line":
        return cls(exact.schedule, float(exact.lam[0]), float(exact.lam[-1]))

    def lam(self, log_gaps: Array) -> Array:
        return self.first + (self.last - self.first) * np.append(0.0, np.cumsum(shares(log_gaps)))

    def times(self, log_gaps: Array) -> tuple[float, ...]:
        return self.at(self.lam(log_gaps))

    def at(self, lam: Array) -> tuple[float, ...]:
        """The times at these levels, both ends exact."""
        return (self.schedule.t_max, *self.schedule.t_of_lam(lam[1:-1]).tolist(), self.schedule.t_end)

    def jacobian(self, log_gaps: Array) -> Array:
        """d lambda_i / d log_gap_j for the times between the ends: (n - 1, n)."""
        w = shares(log_gaps)
        inside = np.tril(np.ones((len(w), len(w))))[:-1]
        return (self.last - self.first) * (inside - np.cumsum(w)[:-1, None]) * w


def shares(log_gaps: Array) -> Array:
    gaps = np.exp(log_gaps - log_gaps.max())
    return np.asarray(gaps / gaps.sum())


def even(exact: Reference, n: int, p: float) -> Array:
    """Log gaps of n steps in each of which the data predictions cover the same share of int |dD/dlambda|^p dlambda.

    The trajectories' nodes lie evenly in lambda.
    """
    D = (exact.y - exact.slope).double()
    speed = (D[1:] - D[:-1]).flatten(1).square().mean(1).sqrt().cpu().numpy()
    speed += np.finfo(np.float64).tiny  # so that data of a single point, which D never leaves, will do
    covered = np.append(0.0, np.cumsum(speed**p))
    return np.log(np.diff(np.interp(np.linspace(0, covered[-1], n + 1), covered, exact.lam)))


def slopes(examples: Examples, line: Line, log_gaps: Array, fit: Fit) -> Tensor:
    """What is missed, flat, differentiated by the lambda of each time between the ends: (n x numel, n - 1)."""
    lam, columns = line.lam(log_gaps), []
    for i in range(1, len(lam) - 1):
        h = SHIFT * (lam[i + 1] - lam[i])
        moved = examples.fit(line.at(lam + h * (np.arange(len(lam)) == i)), fit.outputs[:i])
        columns.append((moved.missed - fit.missed).flatten() / h)
    return torch.stack(columns, 1)


def secant(J: Tensor, step: Tensor, change: Tensor) -> Tensor:
    """The slopes J (m, k) corrected so that `step` (k,) makes the `change` (m,) seen.  Broyden 1965, Eq. (2.10)."""
    return J + torch.outer(change - J @ step, step / (step @ step))


def improve(examples: Examples, line: Line, log_gaps: Array, fit: Fit, damping: float) -> tuple[Array, Fit, float]:
    """STEPS steps of Levenberg-Marquardt in the gaps' logarithms, of which those are kept that miss less."""
    _, least, relief, penalty = DAMPING
    J = slopes(examples, line, log_gaps, fit)
    for _ in range(STEPS):
        chain = line.jacobian(log_gaps)
        A = chain.T @ (J.T @ J).cpu().numpy() @ chain
        downhill = -chain.T @ (J.T @ fit.missed.flatten()).cpu().numpy()
        step = np.linalg.solve(A + damping * np.trace(A) / len(A) * np.eye(len(A)), downhill)
        tried = log_gaps + step / max(1.0, np.abs(step).max() / LONGEST)
        found = examples.fit(line.times(tried))
        moved = torch.from_numpy(line.lam(tried) - line.lam(log_gaps))[1:-1].to(J)
        J = secant(J, moved, (found.missed - fit.missed).flatten())
        if found.objective < fit.objective:
            log_gaps, fit, damping = tried, found, max(damping / relief, least)
        else:
            damping *= penalty
    return log_gaps, fit, damping


def affordable(nfe: int, calls: int, rounds: int) -> int:
    """As many samples as cost no more than DC-Solver's search for the same budget, if its reference takes 100 calls.

    That takes 10 samples, nfe calls and 40 more for each ratio but three, all of these with a backward pass.
    """
    searched = 10 * (100 + nfe + 3 * 40 * max(0, nfe - 3))
    a_round = nfe * (nfe - 1) // 2 + STEPS * nfe
    return max(1, searched // (calls + len(POWERS) * nfe + rounds * a_round))


@dataclass
class Search:
    """How far the search has come: the times' log gaps, the fit there, what it cost and its error so far."""

    examples: Examples
    line: Line
    log_gaps: Array
    fit: Fit
    damping: float
    rounds: int
    curve: list[tuple[int, float]]

    @classmethod
    def begin(cls, problem: Problem, x_T: Tensor, cond: Cond, nfe: int, calls: int, memory: int) -> "Search":
        exact = exact_trajectories(problem.denoiser, x_T, cond, calls)
        examples, line = Examples(problem.denoiser, x_T, cond, exact, memory), Line.of(exact)
        starts = [even(exact, nfe, p) for p in POWERS]
        fits = [examples.fit(line.times(log_gaps)) for log_gaps in starts]
        best = int(np.argmin([fit.objective for fit in fits]))
        return cls(examples, line, starts[best], fits[best], DAMPING[0], 0, [(problem.cost.calls, fits[best].error)])

    @classmethod
    def resume(cls, problem: Problem, x_T: Tensor, cond: Cond, noted: dict[str, Any], memory: int) -> "Search":
        exact = Reference(problem.schedule, noted["lam"].numpy(), noted["y"].to(x_T), noted["slope"].to(x_T))
        examples, line = Examples(problem.denoiser, x_T, cond, exact, memory), Line.of(exact)
        log_gaps = noted["log_gaps"].numpy()
        fit = examples.fit(line.times(log_gaps), noted["outputs"].to(x_T).unbind())  # which takes no call
        curve = [(int(calls), float(error)) for calls, error in noted["curve"]]
        return cls(examples, line, log_gaps, fit, noted["damping"], noted["rounds"], curve)

    def state(self) -> dict[str, Any]:
        exact, outputs = self.examples.exact, torch.stack(self.fit.outputs)
        return {
            "lam": torch.from_numpy(exact.lam), "y": exact.y, "slope": exact.slope, "outputs": outputs,
            "log_gaps": torch.from_numpy(self.log_gaps), "damping": self.damping, "rounds": self.rounds,
            "curve": list(self.curve),
        }  # fmt: skip

    def advance(self, problem: Problem) -> None:
        """One more round for the times."""
        found = improve(self.examples, self.line, self.log_gaps, self.fit, self.damping)
        self.log_gaps, self.fit, self.damping = found
        self.rounds += 1
        self.curve.append((problem.cost.calls, self.fit.error))


@tuner("fitted")
def fitted(
    problem: Problem,
    nfe: int | None,
    notes: Notes,
    samples: int = 0,
    calls: int = 40,
    memory: int = 16,
    rounds: int = 2,
    gradients: int = 0,
) -> Finding:
    """Fit on `samples` trajectories of `calls` calls, recalling `memory` outputs; 0 samples: as many as affordable.

    `rounds` are for the times, `gradients` for all of it: these are off, since at the same cost rounds do more.
    """
    check(problem, nfe, samples, calls, memory, rounds, gradients)
    assert nfe is not None
    x_T, cond = problem.start(0, samples or affordable(nfe, calls, rounds), problem.schedule.t_max)
    noted = notes.read()
    if noted is None:
        search = Search.begin(problem, x_T, cond, nfe, calls, memory)
        notes.write(search.state())
    else:
        search = Search.resume(problem, x_T, cond, noted, memory)
    while search.rounds < rounds and nfe > 1:
        search.advance(problem)
        notes.write(search.state())
    solver = search.fit.solver
    if gradients:
        ends = (search.line.first, search.line.last)
        around = Neighbourhood.of(search.examples, search.fit, ends, search.log_gaps)
        solver, error = descend(around, gradients)
        search.curve.append((problem.cost.calls, error))
    values = {"plan": json.loads(solver.plan(problem.schedule).to_json()), "trajectories": len(x_T)}
    return Finding("none", values, tuple(search.curve))


def check(
    problem: Problem, nfe: int | None, samples: int, calls: int, memory: int, rounds: int, gradients: int
) -> None:
    """Raises ValueError for what the search cannot take."""
    if nfe is None or nfe < 1:
        raise ValueError(f"fitted: a plan is found for one budget of calls >= 1, not for {nfe}")
    if problem.metric is not None:
        raise ValueError(
            f"fitted: it learns from trajectories and cannot search for {problem.metric[0]}: give no metric"
        )
    least = {"samples": (samples, 0), "calls": (calls, 8), "memory": (memory, 1), "rounds": (rounds, 0)}
    for name, (value, low) in {**least, "gradients": (gradients, 0)}.items():
        if value < low:
            raise ValueError(f"fitted: {name}={value} must be at least {low}")
