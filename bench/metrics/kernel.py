"""Distances between distributions in the feature space of a kernel: KID, MMD, CMMD and the energy distance.

All are E k(x, x') + E k(y, y') - 2 E k(x, y) of some kernel k, over pairs of different samples, so unbiased at any N
(and below zero by chance where distributions are equal), but for CMMD, which its authors define with all pairs.
Errors are over the samples, the reference taken as fixed: the influence of a sample is 2 (h - mean h), with h the mean
of k to the other samples less that to the reference.  Where distributions are nearly equal, the noise of these means is
counted twice: the error is then 1.3 times the spread of repeated samples, and at most sqrt(2) times.
"""

from abc import abstractmethod
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from bench.errors import UsageError
from bench.metrics.base import Context, Features, Value
from bench.metrics.comparison import PAIRS, Comparison, require, squared_distances

MEDIAN_OF = 1000  # features of the reference that the median heuristic looks at


class KID(Comparison):
    """Kernel Inception distance: squared MMD of a cubic kernel, mean over subsets.  Binkowski et al. 2018, 1801.01401.

    Subsets are torch-fidelity's, drawn from `seed`, the same for every cell of as many samples; they hold `size`
    samples or, where there are fewer, all.  The error counts a sample in every subset that holds it.
    """

    name, needs = "kid", "Inception weights, or other features"

    def __init__(
        self, context: Context, features: str = "inception", subsets: int = 100, size: int = 1000, seed: int = 2020
    ) -> None:
        require(self.name, "subsets", subsets, 1)
        require(self.name, "size", size, 2)
        require(self.name, "seed", seed, 0)
        super().__init__(context, features)
        self.subsets, self.size, self.seed = subsets, size, seed

    def evaluate(self, features: Features, plan_times: tuple[float, ...]) -> list[Value]:
        x, y = self.double(features), self.double(self.reference.features)
        n, m = len(x), min(self.size, len(x), len(y))
        rows, columns = draw_subsets(n, len(y), self.subsets, m, self.seed)
        about = (KID, self.features, n, self.subsets, m, self.seed)
        real: float = self.context.shared(about, lambda: float(among(y, columns).mean()))
        within, across = among(x, rows), subset_sums(x, y, rows, columns) / m
        h = within - across
        weight = 2 * n / rows.numel()
        influence = torch.zeros_like(x[:, 0])
        influence.index_add_(0, rows.flatten().to(x.device), weight * (h - h.mean(1, keepdim=True)).flatten())
        value = float(within.mean() + real - 2 * across.mean())
        source = dict(self.reference.source) | {"n": len(y)}
        settings = f"{self.subsets} subsets of {m}"
        return [self.value(value, n, source, influence=influence.cpu().numpy(), settings=settings)]


def draw_subsets(n: int, n_reference: int, subsets: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Which samples and which features of the reference each subset holds, both (subsets, size)."""
    rng = np.random.RandomState(seed)
    pairs = [[rng.choice(count, size, replace=False) for count in (n, n_reference)] for _ in range(subsets)]
    rows, columns = torch.from_numpy(np.array(pairs)).unbind(1)
    return rows, columns


def cubic(x: Tensor, y: Tensor) -> Tensor:
    """(x.y / d + 1)^3, (N, M)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def subset_sums(x: Tensor, y: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """For each of a subset's rows of x, the sum of the kernel over its columns of y: (subsets, size).

    Over all pairs at once, unless there are more of those than in the subsets together.
    """
    rows, columns = rows.to(x.device), columns.to(x.device)
    if len(x) * len(y) > rows.numel() * rows.shape[1]:
        return torch.stack([cubic(x[i], y[j]).sum(1) for i, j in zip(rows, columns, strict=True)])
    member = torch.zeros_like(y[:, :1]).expand(-1, len(columns)).scatter(0, columns.T, 1.0)
    sums = torch.cat([cubic(some, y) @ member for some in x.split(max(1, PAIRS // len(y)))])
    return sums.T.gather(1, rows)


def among(x: Tensor, rows: Tensor) -> Tensor:
    """For each of a subset's rows of x, the mean of the kernel over the others of its subset: (subsets, size)."""
    itself = (torch.linalg.vector_norm(x, dim=1) ** 2 / x.shape[1] + 1) ** 3
    return (subset_sums(x, x, rows, rows) - itself[rows.to(x.device)]) / (rows.shape[1] - 1)


class KernelDistance(Comparison):
    """A squared distance whose kernel is a function of the Euclidean one; all N^2 + N M pairs, a block at a time."""

    @abstractmethod
    def kernel(self, squared: Tensor) -> Tensor:
        """Of squared Euclidean distances."""

    @property
    def settings(self) -> str:
        """What its kernel depends on."""
        return ""

    def evaluate(self, features: Features, plan_times: tuple[float, ...]) -> list[Value]:
        x, y = self.both(features)
        about = (type(self), self.features, self.settings)
        real: float = self.context.shared(about, lambda: float(self.within(y).mean()))
        within, across = self.within(x), self._sums(x, y) / len(y)
        influence = 2 * (within - across)
        source = dict(self.reference.source) | {"n": len(y)}
        value = float(within.mean() + real - 2 * across.mean())
        return [self.value(value, len(x), source, influence=influence.cpu().numpy(), settings=self.settings)]

    def within(self, x: Tensor) -> Tensor:
        """The kernel's mean between each sample and the others, (N,)."""
        return (self._sums(x, x) - self.kernel(x.new_zeros(()))) / (len(x) - 1)

    def _sums(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([self._block(rows, block, x is y) for rows, block in squared_distances(x, y)])

    def _block(self, rows: slice, block: Tensor, same: bool) -> Tensor:
        if same:
            block.diagonal(rows.start).zero_()  # which rounding makes 1e-16 or so
        return self.kernel(block).sum(1)


class MMD(KernelDistance):
    """Squared maximum mean discrepancy of a Gaussian kernel.  Gretton et al. 2012, JMLR 13.

    The bandwidth sigma in exp(-|x - y|^2 / (2 sigma^2)) is, when 0, the median distance between 1,000 features of the
    reference: the same for all that is compared with it.
    """

    name, needs = "mmd", "nothing"

    def __init__(self, context: Context, features: str = "", bandwidth: float = 0.0) -> None:
        require(self.name, "bandwidth", bandwidth, 0)
        super().__init__(context, features)
        self.given = bandwidth

    @cached_property
    def bandwidth(self) -> float:
        if self.given:
            return self.given
        y = self.reference.features
        some = np.random.default_rng(0).permutation(len(y))[:MEDIAN_OF]
        median = float(torch.pdist(self.double(y[some])).median())
        if median == 0:
            raise UsageError("mmd: the reference's median distance is 0, since most of it is equal: give bandwidth=...")
        return median

    @property
    def settings(self) -> str:
        return f"bandwidth {self.bandwidth:.6g}"

    def kernel(self, squared: Tensor) -> Tensor:
        return (squared / (-2 * self.bandwidth**2)).exp()


class EnergyDistance(KernelDistance):
    """2 E|x - y| - E|x - x'| - E|y - y'|, which is 0 for equal distributions alone.  Szekely & Rizzo 2013, JSPI 143."""

    name, needs = "energy", "nothing"

    def kernel(self, squared: Tensor) -> Tensor:
        return -squared.sqrt()


class CMMD(KernelDistance):
    """CLIP maximum mean discrepancy: Gaussian kernel with sigma = 10 on unit embeddings, times 1,000.

    Jayasumana et al. 2024, arXiv 2401.09603, as their code computes it: over all pairs, a sample with itself included,
    which adds a bias of about 1000 (1 - mean k) / N for each side.
    """

    name, needs = "cmmd", "CLIP weights"

    def __init__(self, context: Context, features: str = "clip") -> None:
        super().__init__(context, features)

    def both(self, features: Features) -> tuple[Tensor, Tensor]:
        x, y = self.double(features), self.double(self.reference.features)
        return x / x.norm(dim=1, keepdim=True), y / y.norm(dim=1, keepdim=True)

    def kernel(self, squared: Tensor) -> Tensor:
        return 1000 * (squared / (-2 * 10.0**2)).exp()

    def within(self, x: Tensor) -> Tensor:
        return self._sums(x, x) / len(x)
