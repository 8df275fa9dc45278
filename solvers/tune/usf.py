"""USF: a solver of which every step is searched for.  Liu et al. 2024, arXiv 2312.07243, Section 4 (S^3).

The prediction, the order, the scheme and the corrector of each step, and the times (solvers/unified.py), by an
evolution that a predictor guides (trials.py) and that begins with the published solvers on the named grids.  The paper
trains a network to predict a candidate's FID; here the model itself predicts its error, linearised.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from solvers.grid import make_grid
from solvers.plan import Plan
from solvers.schedule import Schedule
from solvers.tune.base import Finding, Notes, Problem, tuner
from solvers.tune.trials import GRIDS, Trials, ends, evolve, stretched
from solvers.unified import OUTPUTS, PUBLISHED, SCHEMES, Move, Recipe, plan, published

CHANGED = 0.3  # the greatest share of moves that a child has of its own
CROSSED = 0.3  # the share of children with two parents


@dataclass(frozen=True)
class Recipes:
    """The recipes of nfe steps."""

    schedule: Schedule
    nfe: int

    @cached_property
    def published(self) -> Mapping[str, Recipe]:
        grids = {grid: make_grid(grid, self.schedule, self.nfe, *ends(self.schedule)).times for grid in GRIDS}
        return {f"{name}(grid={grid})": published(name, times) for name in PUBLISHED for grid, times in grids.items()}

    def plan(self, candidate: Recipe) -> Plan:
        return plan(candidate, self.schedule)

    def child(self, a: Recipe, b: Recipe, rng: np.random.Generator) -> Recipe:
        share = 0.5 if rng.random() < CROSSED else 0.0
        moves = [b.moves[i] if rng.random() < share else move for i, move in enumerate(a.moves)]
        rate = CHANGED * rng.random()
        moves = [some_move(i, rng) if rng.random() < rate else move for i, move in enumerate(moves)]
        return Recipe(stretched(self.schedule, a.times, b.times, rng), tuple(moves))


def some_move(i: int, rng: np.random.Generator) -> Move:
    """Any move that step i can make, every other one with a corrector."""
    predicts: Literal["noise", "data"] = "noise" if rng.random() < 0.5 else "data"
    order, scheme, corrector = rng.integers((min(OUTPUTS, i + 1), len(SCHEMES), 2 * len(SCHEMES)))
    return Move(predicts, 1 + int(order), SCHEMES[scheme], (*SCHEMES, *["none"] * len(SCHEMES))[corrector])


@tuner("usf")
def usf(
    problem: Problem,
    nfe: int,
    notes: Notes,
    samples: int = 64,
    calls: int = 0,
    solution: int = 24,
    screened: int = 480,
    objective: str = "error",
) -> Finding:
    """`solution` calls an exact sample, `screened` predictions a generation; 0 `calls` are 800 for each of nfe."""
    trials = Trials(problem, nfe, notes, samples, calls, solution, screened, objective)
    recipe, base = evolve(trials, space := Recipes(problem.schedule, nfe))
    values = {"plan": json.loads(space.plan(recipe).to_json()), "moves": [asdict(move) for move in recipe.moves]}
    return Finding(base, values, trials.curve, trials.objective)
