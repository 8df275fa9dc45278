"""Sliced Wasserstein distance: what it costs to move the samples onto the reference, seen along random lines."""

import numpy as np
import ot

from bench.metrics.base import Context, Features, Value
from bench.metrics.comparison import Comparison, require
from bench.stats import Floats


class SlicedWasserstein(Comparison):
    """W_2 along random lines, the root of its mean square; by POT.  Bonneel et al. 2015, JMIV 51.

    Its square is too large by about (1/N + 1/M) times the spread along a line, even between equal distributions:
    compare at equal N.  The influence of a sample is the mean over lines of its optimal dual potential (del Barrio,
    Gordaliza & Loubes 2019), over 2 W_2.
    """

    name, needs = "sliced_wasserstein", "nothing"

    def __init__(self, context: Context, features: str = "", projections: int = 128, seed: int = 0) -> None:
        require(self.name, "projections", projections, 1)
        require(self.name, "seed", seed, 0)
        super().__init__(context, features)
        self.projections, self.seed = projections, seed

    def evaluate(self, features: Features, plan_times: tuple[float, ...]) -> list[Value]:
        x, y = (part.astype(np.float64) for part in (features, self.reference.features))
        lines = ot.sliced.get_random_projections(x.shape[1], self.projections, self.seed)
        value = float(ot.sliced_wasserstein_distance(x, y, projections=lines))
        dual = potentials(x @ lines, y @ lines).mean(1)
        influence = (dual - dual.mean()) / (2 * value) if value else np.zeros(len(x))
        source = dict(self.reference.source) | {"n": len(y)}
        settings = f"{self.projections} projections"
        return [self.value(value, len(x), source, influence=influence, settings=settings)]


def potentials(x: Floats, y: Floats) -> Floats:
    """How W_2^2 from x (N, P) to y (M, P), in each column, changes with each sample's weight: (N, P), up to a constant.

    Its slope at x is 2 (x - T(x)) with T the optimal map, which between the i-th and the next sample is y's quantile at
    i / N: the increments are exact.
    """
    n, order = len(x), x.argsort(0)
    x = np.take_along_axis(x, order, 0)
    between = np.sort(y, 0)[-(-np.arange(1, n) * len(y) // n) - 1]  # the quantile: the ceil(i M / N)-th smallest
    rising = np.cumsum(np.diff(x**2, axis=0) - 2 * between * np.diff(x, axis=0), axis=0)
    dual = np.empty_like(x)
    np.put_along_axis(dual, order, np.concatenate([np.zeros_like(x[:1]), rising]), 0)
    return dual
