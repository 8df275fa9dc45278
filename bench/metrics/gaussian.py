"""The Frechet distance between Gaussians fitted to features, in float64, and how each sample pulls at it.

d^2 = |mu - mu_r|^2 + tr(S + S_r - 2 (S_r^(1/2) S S_r^(1/2))^(1/2)).  Dowson & Landau 1982; Heusel et al. 2017,
arXiv 1706.08500.  With any factor S_r = L L^T the last trace is the sum of the roots of the eigenvalues of L^T S L; a
triangular L, kept with the reference, makes that product by LAPACK's sygst for a quarter of the price of two general
ones.  For N < d the same eigenvalues are those of the Gram matrix Z S_r Z^T / (N - 1) of the centred features Z.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import add
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg.lapack import dsygst

from bench.metrics.base import Features
from bench.stats import Floats

Matrix = NDArray[np.float64]
CPU = torch.device("cpu")
CHUNK = 8192  # features turned into float64 at a time


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter (sum of squared deviations) of features; those of two disjoint sets add up exactly."""

    n: int
    mean: Matrix
    scatter: Matrix

    @classmethod
    def of(cls, features: Features, device: torch.device = CPU) -> "Moments":
        """Of features (N, d), a chunk at a time."""
        chunks = [features[i : i + CHUNK] for i in range(0, len(features), CHUNK)]
        total = cls._of(chunks[0], device)
        for chunk in chunks[1:]:
            total += cls._of(chunk, device)
        return total

    @classmethod
    def _of(cls, features: Features, device: torch.device) -> "Moments":
        if device.type == "cpu":
            mean = features.mean(0, dtype=np.float64)
            z = features - mean
            return cls(len(z), mean, z.T @ z)  # numpy sees that it is symmetric (BLAS's syrk), torch does not
        x = torch.as_tensor(features, dtype=torch.float64, device=device)
        y = x - x.mean(0)
        return cls(len(x), x.mean(0).cpu().numpy(), (y.T @ y).cpu().numpy())

    @classmethod
    def quarters(cls, features: Features, device: torch.device = CPU) -> tuple["Moments", ...]:
        """Of every fourth sample, from each of the first four on; none where they say less than the samples do."""
        if len(features) // 4 < max(2, features.shape[1]):
            return ()
        return tuple(cls.of(features[k::4], device) for k in range(4))

    def __add__(self, other: "Moments") -> "Moments":
        """Chan et al. 1983's update."""
        n, shift = self.n + other.n, other.mean - self.mean
        between = np.outer(shift, shift) * (self.n * other.n / n)
        return Moments(n, self.mean + shift * (other.n / n), self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Matrix:
        """Unbiased, as in every published implementation."""
        return self.scatter / (self.n - 1)


@dataclass(frozen=True)
class Gaussian:
    """What samples are compared with: a mean (d,), a covariance (d, d), and where they come from."""

    mean: Matrix
    covariance: Matrix
    source: Mapping[str, Any]

    @cached_property
    def factor(self) -> Matrix:
        """A lower-triangular L with L L^T the covariance, which may be singular; computed once."""
        e, Q = np.linalg.eigh(self.covariance)
        root = Q * np.sqrt(e.clip(0))  # a covariance has no negative eigenvalues but by rounding
        return np.asfortranarray(np.linalg.qr(root.T, mode="r").T)


def distance(m: Moments, reference: Gaussian, device: torch.device = CPU) -> float:
    """The squared Frechet distance; never negative, since eigenvalues that rounding made negative count as 0."""
    return _distance(m.mean, np.trace(m.covariance), _eigh(m, reference, device, vectors=False)[0], reference)


def frechet(
    features: Features, reference: Gaussian, device: torch.device = CPU, quarters: Sequence[Moments] = ()
) -> tuple[float, Floats]:
    """The squared distance of features (N, d) to a reference, and each sample's influence on it, (N,).

    The influence of x is 2 (mu - mu_r)^T (x - mu) + (x - mu)^T (I - T)(x - mu) with T = L (L^T S L)^(-1/2) L^T, the
    reference taken as fixed; its standard deviation over sqrt(N) is the distance's standard error (delta method).
    Since T is fitted too, samples' second-order effect counts twice in it: exact for the extrapolated distance, where
    it counts twice, and for the distance at N cautious where that is near 0, by about sqrt(2) (results/calibration).
    Moments of `quarters`, where they are known, save those of all.
    """
    n, d = features.shape
    if n < d:
        mean = features.mean(0, dtype=np.float64)
        z = features.astype(np.float64) - mean
        y = _on(device, z) @ _on(device, reference.factor)
        e, U = torch.linalg.eigh(y @ y.T / (n - 1))
        e[0] = 0  # in truth: centred features have a rank of N - 1 at most, and the root of a rounding error is large
        roots = e.clip(0).sqrt()
        pulled = ((n - 1) * (U**2 @ roots)).cpu().numpy()  # z^T T z, from the Gram matrix's own eigenvectors
        value = _distance(mean, (z**2).sum() / (n - 1), e.cpu().numpy(), reference)
        return value, 2 * z @ (mean - reference.mean) + (z**2).sum(1) - pulled
    m = reduce(add, quarters) if quarters else Moments.of(features, device)
    e, Q = _eigh(m, reference, device, vectors=True)
    value = _distance(m.mean, np.trace(m.covariance), e, reference)
    inverse = np.power(e, -0.25, out=np.zeros_like(e), where=e > e[-1] * 1e-12)  # pseudo-inverse: flat directions
    W = _on(device, reference.factor) @ _on(device, Q * inverse)  # T = W W^T
    pull = torch.eye(d, dtype=W.dtype, device=device) - W @ W.T
    shift = _on(device, 2 * (m.mean - reference.mean))
    influences = []
    for i in range(0, n, CHUNK):
        z = _on(device, features[i : i + CHUNK] - m.mean)
        influences.append((z * torch.addmm(shift, z, pull)).sum(1).cpu().numpy())
    return value, np.concatenate(influences)


def richardson(
    features: Features,
    reference: Gaussian,
    value: float,
    device: torch.device = CPU,
    quarters: Sequence[Moments] = (),
) -> tuple[float, float] | None:
    """The distance at infinitely many samples, and how far that may be off by itself; None for fewer than 8 samples.

    The bias falls as 1/N, so it is 2 d_N - the mean of both halves' d_(N/2): Chong & Forsyth 2020, arXiv 1911.07023,
    in its two-point form.  What that leaves falls as 1/N^2, a third of what the same step changes from N/2 to N; half
    is taken, with which 95 % intervals hold at N = 4 d too (results/calibration).  Parts are every second, and every
    fourth, sample.
    """
    n = len(features)
    if n < 8:  # a quarter needs two
        return None
    if q := quarters or Moments.quarters(features, device):
        found = [distance(m, reference, device) for m in (q[0] + q[2], q[1] + q[3], *q)]
    else:
        parts = [features[0::2], features[1::2], *(features[k::4] for k in range(4))]
        found = [frechet(part, reference, device)[0] for part in parts]
    half, quarter = sum(found[:2]) / 2, sum(found[2:]) / 4
    return 2 * value - half, abs((2 * value - half) - (2 * half - quarter)) / 2


def _distance(mean: Matrix, trace: float, eigenvalues: Matrix, reference: Gaussian) -> float:
    shift = mean - reference.mean
    total = shift @ shift + trace + np.trace(reference.covariance) - 2 * np.sqrt(eigenvalues.clip(0)).sum()
    return max(float(total), 0.0)


def _eigh(m: Moments, reference: Gaussian, device: torch.device, vectors: bool) -> tuple[Matrix, Any]:
    """Eigenvalues of L^T S L, (d,), rising, and its eigenvectors if asked for."""
    if device.type == "cuda":
        L = _on(device, reference.factor)
        C = L.T @ _on(device, m.covariance) @ L
        if not vectors:
            return torch.linalg.eigvalsh(C).cpu().numpy(), None
        e, Q = torch.linalg.eigh(C)
        return e.cpu().numpy(), Q.cpu().numpy()
    C, _ = dsygst(m.covariance, reference.factor, itype=2, lower=1)  # the lower triangle, which eigh reads
    if vectors:
        e, Q = np.linalg.eigh(C)
        return e, Q
    return np.linalg.eigvalsh(C), None


def _on(device: torch.device, x: Matrix) -> torch.Tensor:
    return torch.as_tensor(x, device=device)
