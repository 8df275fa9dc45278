"""Evolution guided by a predictor: what the searches for solvers and for times have in common.

Each generation breeds from the best plans known, screens the children by their predicted error at no call
(predictor.py), and tries the most promising on the network, until the budget of calls is spent.
"""

from collections.abc import Callable, Mapping
from functools import cache
from itertools import accumulate
from math import inf, isfinite
from typing import Any, Protocol, TypeVar

import numpy as np
from torch import Tensor, from_numpy

import solvers
from solvers.model import Denoiser
from solvers.plan import Plan
from solvers.schedule import Schedule
from solvers.tracer import check_word
from solvers.tune.base import Notes, Problem
from solvers.tune.predictor import Linearised
from solvers.tune.reference import Reference, reference

FIRST, THEN = 3, 2  # true evaluations in the first generation, and in each of the others
PARENTS = 12
BROOD = 40  # children between two selections
BUDGET = 800  # calls of single samples for each call of the plan
GRIDS = ("logsnr", "karras", "quadratic", "uniform")  # of the first population
STREAM = 5000  # of the search's own draws, one a generation

G = TypeVar("G")


class Space(Protocol[G]):
    """What is searched: the first population by name, each candidate's plan, and how candidates breed."""

    @property
    def published(self) -> Mapping[str, G]: ...

    def plan(self, candidate: G) -> Plan: ...

    def child(self, a: G, b: G, rng: np.random.Generator) -> G: ...


class Trials:
    """Plans tried on a problem's first `samples` samples, within a budget of `calls` (0: BUDGET for each of nfe).

    It takes notes of its trials: a search that is run again makes them anew from these, and goes on where they end.
    """

    def __init__(
        self,
        problem: Problem,
        nfe: int,
        notes: Notes,
        samples: int,
        calls: int,
        solution: int,
        screened: int,
        objective: str,
    ) -> None:
        """Raises ValueError for a budget in which nothing can be tried, and for an objective that is not there."""
        check_word("a search", "objective", objective, ("error", "metric"))
        if objective == "metric" and problem.metric is None:
            raise ValueError("objective=metric: this problem has no metric, so search for objective=error")
        if objective == "error" and problem.metric is not None:
            raise ValueError(f"objective=error does not look at the metric {problem.metric[0]}: give objective=metric")
        given = {"nfe": (nfe, 2), "samples": (samples, 1), "solution": (solution, 4), "screened": (screened, 1)}
        for name, (value, least) in given.items():
            if value < least:
                raise ValueError(f"a search: {name}={value} must be at least {least}")
        self.problem, self.notes, self.nfe, self.screened = problem, notes, nfe, screened
        self.metric = problem.metric if objective == "metric" else None
        start, end = ends(problem.schedule)
        self.x_T, self.cond = problem.start(0, samples, start)
        forwards = samples * problem.denoiser.cost(start)
        self.each, self.budget = nfe * forwards, calls or BUDGET * nfe * problem.denoiser.cost(start)
        least = solution * forwards + self.each
        if self.budget < least:
            raise ValueError(f"calls={self.budget} are too few for {samples} samples: give at least {least} calls")
        state = notes.read()
        if state is None:
            exact = reference(problem.denoiser, self.x_T, self.cond, start, end, solution)
            state = {"lam": exact.lam.tolist(), "y": exact.y, "slope": exact.slope, "spent": problem.cost.calls}
            notes.write(state | {"tried": []})
        exact = Reference(problem.schedule, np.array(state["lam"]), state["y"], state["slope"])
        self.noted = list(state.get("tried", []))
        self.state, self.spent = {k: v for k, v in state.items() if k != "tried"}, int(state["spent"])
        self.tried: list[dict[str, Any]] = []
        self.model, self.end = Linearised(exact), exact.at(end)

    @property
    def objective(self) -> str:
        return f"metric-searched: {self.metric[0]}" if self.metric else "truncation error"

    @property
    def affordable(self) -> bool:
        """Whether the budget has room for one more trial."""
        return self.spent + self.each <= self.budget

    @property
    def curve(self) -> tuple[tuple[int, float], ...]:
        """Calls spent and the best score after each trial, from the first that did not diverge."""
        best = accumulate((trial["score"] for trial in self.tried), min)
        return tuple((trial["spent"], score) for trial, score in zip(self.tried, best, strict=True) if score < inf)

    def score(self, x: Tensor) -> float:
        """How bad these final states are: infinitely so when they diverged."""
        if not bool(x.isfinite().all()):
            return inf
        value = self.metric[1](x) if self.metric else float((x - self.end).double().pow(2).mean().sqrt())
        return value if isfinite(value) else inf

    def evaluate(self, plan: Plan) -> float:
        """The plan's score on the network, whose every call teaches the predictor."""
        if len(self.tried) < len(self.noted):
            trial = self.noted[len(self.tried)]
            self.model.seen.extend(trial["seen"])
        else:
            trial = self._run(plan)
        self.tried.append(trial)
        self.spent = trial["spent"]
        return float(trial["score"])

    def _run(self, plan: Plan) -> dict[str, Any]:
        known, denoiser = len(self.model.seen), self.problem.denoiser

        def network(x: Tensor, t: Tensor) -> Tensor:
            D = denoiser(x, float(t[0]), "data", self.cond)
            self.model.observe(x, float(t[0]), D)
            return D

        score = self.score(solvers.sample(plan, Denoiser(network, self.problem.schedule, "data"), self.x_T))
        return {"score": score, "spent": self.problem.cost.calls, "seen": self.model.seen[known:]}

    def save(self) -> None:
        if len(self.tried) > len(self.noted):
            self.notes.write(self.state | {"tried": self.tried})

    def predictor(self, rng: np.random.Generator) -> Callable[[Plan], float]:
        """The score that a plan will have, as far as is known now; draws are the same for all plans."""
        slopes = self.model.slopes()
        z = from_numpy(rng.standard_normal((self.nfe, *self.x_T.shape))).to(self.x_T)
        return lambda plan: self.score(solvers.sample(plan, self.model.denoiser(slopes, z), self.x_T))


def evolve(trials: Trials, space: Space[G]) -> tuple[G, str]:
    """The best candidate tried, and the name of the best published one; raises ValueError where all diverged."""
    known: dict[G, float] = {}
    names, generation = {candidate: name for name, candidate in space.published.items()}, 0
    while trials.affordable:
        rng = np.random.Generator(np.random.Philox(key=[trials.problem.seed, STREAM + generation]))
        predict = trials.predictor(rng)
        predicted = cache(lambda candidate: predict(space.plan(candidate)))  # noqa: B023
        if known:
            parents = sorted(dict.fromkeys([*known, *names]), key=lambda c: known.get(c) or predicted(c))
            hopeful = [c for c in breed(space, parents[:PARENTS], predicted, rng, trials.screened) if c not in known][
                :THEN
            ]
        else:
            hopeful = sorted(names, key=predicted)[:FIRST]
        for candidate in hopeful:
            if trials.affordable:
                known[candidate] = trials.evaluate(space.plan(candidate))
        trials.save()
        generation += 1
    if min(known.values()) == inf:
        raise ValueError(f"every one of the {len(known)} candidates tried diverged: nothing was found")
    return min(known, key=known.__getitem__), names[min(known.keys() & names, key=known.__getitem__)]


def breed(
    space: Space[G], parents: list[G], predicted: Callable[[G], float], rng: np.random.Generator, screened: int
) -> list[G]:
    """The PARENTS best of the parents and `screened` descendants by their prediction, the best first."""
    for born in range(0, screened, BROOD):
        pairs = rng.integers(len(parents), size=(min(BROOD, screened - born), 2))
        children = [space.child(parents[a], parents[b], rng) for a, b in pairs]
        parents = sorted(dict.fromkeys([*parents, *children]), key=predicted)[:PARENTS]
    return parents


def ends(schedule: Schedule) -> tuple[float, float]:
    """Where the plans of a search start and end: lambda is finite there, unlike at rectified flow's first time."""
    first = schedule.t_max if np.isfinite(schedule.lam(schedule.t_max)) else 0.999 * schedule.t_max
    return first, schedule.t_end


def stretched(
    schedule: Schedule, a: tuple[float, ...], b: tuple[float, ...], rng: np.random.Generator
) -> tuple[float, ...]:
    """The times a, now and then averaged with b, with steps in lambda made longer and shorter at random."""
    share = rng.random() if rng.random() < 0.3 else 0.0
    lam = (1 - share) * schedule.lam(a) + share * schedule.lam(b)
    change = rng.normal(size=len(a) - 1) * (rng.random(len(a) - 1) < 0.6)
    steps = np.diff(lam) * np.exp(0.3 * rng.random() * change)
    inner = lam[0] + (lam[-1] - lam[0]) * np.cumsum(steps)[:-1] / steps.sum()
    return (a[0], *schedule.t_of_lam(inner).tolist(), a[-1])
