"""AutoDiffusion: the times of a solver are searched for.  Li et al. 2023, arXiv 2309.10438, Section 3.

By an evolution that begins with the named grids (trials.py).  The paper picks labels of the training, and layers of the
network to leave out, and tries every candidate, by FID; here times are free and alone, and a predictor screens them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

import solvers
from solvers.plan import Plan
from solvers.schedule import Schedule
from solvers.tracer import Method
from solvers.tune.base import Finding, Notes, Problem, tuner
from solvers.tune.trials import GRIDS, Trials, ends, evolve, stretched

Times = tuple[float, ...]


@dataclass(frozen=True)
class Schedules:
    """The times on which `base` spends nfe calls."""

    base: Method
    schedule: Schedule
    nfe: int

    @cached_property
    def published(self) -> Mapping[str, Times]:
        """The named grids, the solver's own before them if it ends where they do."""
        start, end = ends(self.schedule)
        grids = dict.fromkeys([self.base.default_grid(self.schedule), *GRIDS])
        found = {name: self.base.build(self.schedule, self.nfe, name, None, start, end).times for name in grids}
        return {name: times for name, times in found.items() if times[-1] == end}

    def plan(self, candidate: Times) -> Plan:
        return self.base.build(self.schedule, times=candidate)

    def child(self, a: Times, b: Times, rng: np.random.Generator) -> Times:
        return stretched(self.schedule, a, b, rng)


@tuner("autodiffusion")
def autodiffusion(
    problem: Problem,
    nfe: int,
    notes: Notes,
    base: str = "ddim",
    samples: int = 64,
    calls: int = 0,
    solution: int = 24,
    screened: int = 480,
    objective: str = "error",
) -> Finding:
    """`solution` calls an exact sample, `screened` predictions a generation; 0 `calls` are 800 for each of nfe."""
    method = solvers.method(base)
    if not isinstance(method, Method) or method.learns:
        raise ValueError(f"tuning autodiffusion: base={base!r} must make plans without tuning, as ddim and ipndm do")
    space = Schedules(method, problem.schedule, nfe)
    if method.build(problem.schedule, times=next(iter(space.published.values()))).draws:
        raise ValueError(
            f"tuning autodiffusion: base={base!r} adds noise, so no exact samples are there to compare with"
        )
    trials = Trials(problem, nfe, notes, samples, calls, solution, screened, objective)
    times, _ = evolve(trials, space)
    return Finding(base, {"plan": json.loads(space.plan(times).to_json())}, trials.curve, trials.objective)
