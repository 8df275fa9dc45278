"""Frechet distances between Gaussians fitted to features, in float64, with their standard errors.

d^2 = |mu - mu_r|^2 + tr(S + S_r - 2 (S_r^(1/2) S S_r^(1/2))^(1/2)).  Dowson & Landau 1982; Heusel et al. 2017,
arXiv 1706.08500.  Only on Inception features is this called FID; here each family of features has a name of its own.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.checkpoints.base import unquantise
from bench.errors import UsageError
from bench.files import sha256
from bench.metrics.base import Chunk, Context, Features, Metric, Value

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter (sum of squared deviations) of features; those of two disjoint sets add up exactly."""

    n: int
    mean: Matrix
    scatter: Matrix

    @classmethod
    def of(cls, features: Features) -> "Moments":
        x = features.astype(np.float64)
        mean = x.mean(0)
        return cls(len(x), mean, (x - mean).T @ (x - mean))

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
    def root(self) -> Matrix:
        """The symmetric square root of the covariance, computed once."""
        e, Q = np.linalg.eigh(self.covariance)
        return (Q * np.sqrt(e.clip(0))) @ Q.T  # a covariance has no negative eigenvalues but by rounding


def distance(m: Moments, reference: Gaussian) -> float:
    """The squared Frechet distance; never negative, since eigenvalues that rounding made negative count as 0."""
    h, S = reference.root, m.covariance
    eigenvalues = np.linalg.eigvalsh(h @ S @ h).clip(0)
    shift = m.mean - reference.mean
    total = shift @ shift + np.trace(S) + np.trace(reference.covariance) - 2 * np.sqrt(eigenvalues).sum()
    return max(float(total), 0.0)


def standard_error(features: Features, m: Moments, reference: Gaussian) -> float:
    """Delta-method standard error of `distance` over the samples, the reference taken as fixed.

    The influence of a sample x is 2 (mu - mu_r)^T (x - mu) + (x - mu)^T (I - T)(x - mu), T = h (h S h)^(-1/2) h.
    """
    h = reference.root
    e, Q = np.linalg.eigh(h @ m.covariance @ h)
    inverse = np.where(e > e.max() * 1e-12, 1 / np.sqrt(e.clip(e.max() * 1e-12)), 0)  # pseudo-inverse: flat directions
    T = h @ (Q * inverse) @ Q.T @ h
    z = features.astype(np.float64) - m.mean
    influence = 2 * z @ (m.mean - reference.mean) + (z**2).sum(1) - np.einsum("ni,ij,nj->n", z, T, z, optimize=True)
    return float(influence.std(ddof=1) / np.sqrt(m.n))


class Frechet(Metric):
    """The distance of features to a reference; a family says how features are taken and what the reference is."""

    family: str

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.reference = self._reference()

    @abstractmethod
    def _reference(self) -> Gaussian:
        """What samples are compared with; raises UsageError when the checkpoint lacks it."""

    def evaluate(self, features: Features, plan_times: tuple[float, ...]) -> list[Value]:
        m = Moments.of(features)
        value, se = distance(m, self.reference), standard_error(features, m, self.reference)
        return [Value(self.name, value, se, m.n, self.family, self.reference.source)]


class FrechetImages(Frechet):
    """The distance of features of images to those of the checkpoint's real images."""

    @abstractmethod
    def features(self, images: NDArray[np.uint8]) -> Features:
        """Features (N, d) of images (N, C, H, W)."""

    def _reference(self) -> Gaussian:
        if self.context.checkpoint.real is None:
            raise UsageError(f"metric {self.name!r} needs real images, which {self.context.checkpoint.name} lacks")
        images = self.context.checkpoint.real()
        m = Moments.of(self.features(images))
        source = {"data": f"{self.context.checkpoint.name} train", "n": m.n, "sha256": sha256(images.tobytes())}
        return Gaussian(m.mean, m.covariance, source)

    def extract(self, chunk: Chunk) -> Features:
        if chunk.images is None:
            raise UsageError(f"metric {self.name!r} needs images, and {self.context.checkpoint.name} makes none")
        return self.features(chunk.images)


class FrechetPixels(FrechetImages):
    """Between pixels in [-1, 1], after the samples were quantised to bytes."""

    name = "frechet_pixels"
    needs = "images"
    family = "pixels"

    def features(self, images: NDArray[np.uint8]) -> Features:
        return unquantise(images).reshape(len(images), -1).astype(np.float32)


class FrechetDigits(FrechetImages):
    """Between features of the shipped digits classifier, taken through torch-fidelity's extractor."""

    name = "frechet_digits"
    needs = "8x8 grey images"

    def __init__(self, context: Context) -> None:
        from bench.metrics.digits_features import DigitsFeatures

        if context.checkpoint.shape != (1, 8, 8):
            raise UsageError(f"metric {self.name!r} needs 8x8 grey images, not {context.checkpoint.shape}")
        self.extractor = DigitsFeatures()
        self.family = f"digits classifier {self.extractor.digest[:12]}"
        super().__init__(context)

    def features(self, images: NDArray[np.uint8]) -> Features:
        return self.extractor.numpy(images)


class FrechetExact(Frechet):
    """Between the states themselves, against the distribution's exact mean and covariance."""

    name = "frechet_exact"
    needs = "a distribution with known moments"
    family = "states"

    def _reference(self) -> Gaussian:
        if self.context.checkpoint.moments is None:
            raise UsageError(f"metric {self.name!r} needs exact moments, which {self.context.checkpoint.name} lacks")
        mean, covariance = self.context.checkpoint.moments()
        return Gaussian(mean, covariance, {"data": f"{self.context.checkpoint.name} exact moments"})

    def extract(self, chunk: Chunk) -> Features:
        return chunk.x.flatten(1).cpu().numpy()
