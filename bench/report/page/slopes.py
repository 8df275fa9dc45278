"""How fast truncation error falls with network calls: a solver's order as it shows, with its standard error."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import hypot

import numpy as np
import pandas as pd

from bench.report.scores import Score
from bench.report.text import of_students
from bench.stats import spread

METRIC = "trajectory_rmse"


@dataclass(frozen=True)
class Slope:
    """Of log error on log calls with its sign turned, over the upper half of a curve, from `first` to `last` calls."""

    solver: str
    order: int
    value: float
    se: float
    first: float
    last: float


def slopes_of(board: pd.DataFrame) -> list[Slope]:
    """The slopes of a table over seeds, steepest first; students and adaptive solvers have none."""
    rows = board[(board["metric"] == METRIC) & ~board["adaptive"] & ~of_students(board) & (board["value"] > 0)]
    return sorted(_slopes(rows), key=lambda slope: (-slope.value, slope.solver))


def _slopes(rows: pd.DataFrame) -> Iterator[Slope]:
    for name, of_solver in rows.groupby("solver", sort=True):
        late = of_solver[of_solver["nfe"] >= of_solver["nfe"].median()].sort_values("nfe")
        if len(late) > 1:
            value, se = _fit(late["nfe"].to_numpy(float), list(late["score"]))
            first, last = late["nfe"].iloc[[0, -1]]
            yield Slope(str(name), int(late["order"].iloc[0]), value, se, first, last)


def _fit(calls: np.ndarray, scores: list[Score]) -> tuple[float, float]:
    """Least squares, with the error that the values' own give it; parts of the same noise go together."""
    x = np.log(calls) - np.log(calls).mean()
    weights = -x / (x**2).sum()
    values = np.array([score.estimate.value for score in scores])
    parts = [score.estimate.parts for score in scores]
    relative = weights / values  # what a change of each value changes in the slope
    if parts[0] and len({len(part) for part in parts}) == 1:
        se = spread(relative @ np.array(parts))
    else:
        se = hypot(*(relative * [score.estimate.se for score in scores]))
    return float(weights @ np.log(values)), se
