"""Precision, recall, density and coverage: who lies in whose neighbourhood in a feature space.

The ball of a feature reaches to the k-th nearest other one of its own set, its rim included, as in Kynkaanniemi et al.
2019, arXiv 1904.06991 (precision, recall; k = 3); density and coverage are those of Naeem et al. 2020, arXiv 2002.09797
(k = 5).  All four depend on both numbers, so of a larger reference as many features as samples are drawn, once and for
all cells; compare at equal N.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.errors import UsageError
from bench.metrics.base import Context, Features, Value
from bench.metrics.comparison import Comparison, require, squared_distances
from bench.stats import Floats, Parts, groups_of, parts_without

ROUNDING = 1e-12  # of squared norms: what lies no farther outside a ball lies on its rim


class PRDC(Comparison):
    """Precision, recall, density and coverage in balls to the k-th neighbour; k=3 gives the first two as published.

    Errors of precision and density are those of means over samples.  Those of recall and coverage are a jackknife's
    over groups of samples, 1 to 1.8 times the spread of repeated samples: one that is left out is missed only where no
    other stands in for it, and the jackknife counts such joint effects more than once (Efron & Stein 1981).
    """

    name, needs, better = "prdc", "Inception weights, or other features", "higher"
    gives = ("precision", "recall", "density", "coverage")

    def __init__(self, context: Context, features: str = "inception", k: int = 5) -> None:
        require(self.name, "k", k, 1)
        super().__init__(context, features)
        self.k = k

    def check(self, samples: int) -> None:
        if samples <= 2 * self.k:
            raise UsageError(f"prdc: {samples} samples are too few for k={self.k}: take {2 * self.k + 1} or more")

    def evaluate(self, features: Features, plan_times: tuple[float, ...]) -> list[Value]:
        x, y = self.both(features)
        y = y[torch.from_numpy(np.random.default_rng(0).permutation(len(y))[: len(x)])]
        if len(y) <= self.k:
            raise UsageError(f"prdc: k={self.k} needs {self.k + 1} images or more to compare with, not {len(y)}")
        source = dict(self.reference.source) | {"n": len(y)}

        def number(name: str, value: float, influence: Floats | None = None, parts: Parts = ()) -> Value:
            return self.value(
                value, len(x), source, influence=influence, parts=parts, name=name, settings=f"k={self.k}"
            )

        sizes = np.bincount(groups_of(len(x))).tolist()
        about = (PRDC, self.features, self.k, len(y))
        reach: Tensor = self.context.shared(about, lambda: radii(y, self.k, [len(y)])[:, 0])
        holding, recall, coverage = overlaps(x, y, radii(x, self.k, sizes), reach, sizes)
        inside, density = (holding > 0).astype(np.float64), holding / self.k
        return [
            number("precision", inside.mean(), inside - inside.mean()),
            number("recall", recall[0], parts=parts_without(recall[1:])),
            number("density", density.mean(), density - density.mean()),
            number("coverage", coverage[0], parts=parts_without(coverage[1:])),
        ]


def radii(x: Tensor, k: int, sizes: list[int]) -> Tensor:
    """Squared distance of each row of x to its k-th nearest other one, (N, 1 + groups).

    The first column is among all, the others without each of the consecutive groups of these sizes; rows that are left
    out themselves have a radius of -1.  Radii reach a rounding error farther, so that ties count as ties.
    """
    found = [_nearest(rows, block, k, sizes) for rows, block in squared_distances(x, x)]
    squared = torch.cat(found)
    squared += ROUNDING * (squared + (x**2).sum(1, keepdim=True))
    if len(sizes) > 1:
        for g, members in enumerate(torch.arange(len(x)).split(sizes)):
            squared[members, 1 + g] = -1
    return squared


def _nearest(rows: slice, block: Tensor, k: int, sizes: list[int]) -> Tensor:
    """Distances to the k-th neighbours, of some rows; only the k nearest of each group can be among them."""
    block.diagonal(rows.start).fill_(torch.inf)
    groups = [part.topk(min(k, part.shape[1]), largest=False).values for part in block.split(sizes, 1)]
    near = torch.stack([F.pad(part, (0, k - part.shape[1]), value=torch.inf) for part in groups], 1)
    kept = [near] + [near[:, [h for h in range(len(sizes)) if h != g]] for g in range(len(sizes)) if len(sizes) > 1]
    return torch.stack([some.flatten(1).kthvalue(k).values for some in kept], 1)


def overlaps(x: Tensor, y: Tensor, x_radii: Tensor, y_radii: Tensor, sizes: list[int]) -> tuple[Floats, Floats, Floats]:
    """How many balls of y hold each sample, (N,); recall and coverage, of all samples and without each group.

    x_radii (N, 1 + groups) and y_radii (M,) are squared.
    """
    holding = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    recalled, covered = [], []
    for rows, block in squared_distances(y, x):
        inside = block <= y_radii[rows, None]
        holding += inside.sum(0)
        by = torch.stack([part.any(1) for part in inside.split(sizes, 1)], 1)  # which groups cover a ball of y
        others = by.sum(1, keepdim=True) - by.int()
        covered.append(torch.cat([by.any(1, keepdim=True), others > 0], 1))
        recalled.append(torch.stack([(block <= radius).any(1) for radius in x_radii.T], 1))
    recall, coverage = (torch.cat(found).double().mean(0).cpu().numpy() for found in (recalled, covered))
    return holding.cpu().numpy(), recall, coverage
