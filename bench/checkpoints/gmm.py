"""Exact Gaussian mixtures with classes: closed-form noise prediction, exact samples, exact moments."""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from bench.checkpoints.base import Checkpoint
from bench.checkpoints.bundle import Bundle
from solvers import noise
from solvers.model import levels
from solvers.schedule import Schedule, VPLinear

GAUSS, COMPONENT = 2**32, 2**32 + 1  # noise streams of exact samples, away from the sampler's


class GaussianMixture(nn.Module):
    """x0 ~ sum_k w_k N(mu_k, S_k), S_k = Q_k diag(e_k) Q_k^T, component k in class k mod `classes`; all float64.

    As a network it predicts the noise: under x = alpha x0 + sigma eps the marginal is again a mixture,
    sum_k w_k N(alpha mu_k, alpha^2 S_k + sigma^2 I), whose score is known.  Label `classes` means no class.
    """

    def __init__(self, weights: Tensor, means: Tensor, axes: Tensor, variances: Tensor, classes: int) -> None:
        """weights (k,), means (k, *shape), axes (k, d, d) with eigenvectors in columns, variances (k, d)."""
        super().__init__()
        self.shape = tuple(means.shape[1:])
        self.classes = classes
        self.register_buffer("weights", weights.double())
        self.register_buffer("means", means.double().flatten(1))
        self.register_buffer("axes", axes.double())
        self.register_buffer("variances", variances.double())
        self.register_buffer("component_class", torch.arange(len(weights)) % classes)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "GaussianMixture":
        """Moves where `fn` moves tensors, and stays float64: what is exact knows no other precision."""
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)

    @classmethod
    def random(cls, seed: int, k: int = 6, shape: tuple[int, ...] = (1, 4, 4), classes: int = 3) -> "GaussianMixture":
        """A mixture drawn from `seed`: unequal weights, means of size 0.7, strongly unequal axes."""
        g = torch.Generator().manual_seed(seed)
        d = math.prod(shape)
        weights = torch.softmax(0.5 * torch.randn(k, generator=g, dtype=torch.float64), 0)
        means = 0.7 * torch.randn(k, d, generator=g, dtype=torch.float64)
        axes, _ = torch.linalg.qr(torch.randn(k, d, d, generator=g, dtype=torch.float64))
        variances = 0.02 + 0.25 * torch.rand(k, d, generator=g, dtype=torch.float64) ** 3
        return cls(weights, means.reshape(k, *shape), axes, variances, classes)

    def noise(self, x: Tensor, alpha: ArrayLike, sigma: ArrayLike, y: Tensor | None = None) -> Tensor:
        """E[eps | x_t = x, class y] for x (B, *shape), y (B,) and a level for all or one each, in x's dtype."""
        alpha, sigma = (torch.as_tensor(at, dtype=torch.float64, device=x.device) for at in (alpha, sigma))
        alpha, sigma = alpha.reshape(-1, 1, 1), sigma.reshape(-1, 1, 1)
        z = x.double().flatten(1)[:, None] - alpha * self.means  # (B, k, d)
        z = torch.einsum("bkd,kde->bke", z, self.axes)
        variance = alpha**2 * self.variances + sigma**2
        log_p = self.weights.log() - 0.5 * (z**2 / variance + variance.log()).sum(-1)
        if y is not None:
            other = (self.component_class != y[:, None]) & (y[:, None] != self.classes)
            log_p = log_p.masked_fill(other, -torch.inf)
        score = -torch.einsum("bk,bke,kde->bd", log_p.softmax(1), z / variance, self.axes)
        return (-sigma[:, 0] * score).reshape(x.shape).to(x.dtype)

    def moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The exact mean (d,) and covariance (d, d) over all classes."""
        mean = self.weights @ self.means
        within = torch.einsum("k,kde,ke,kfe->df", self.weights, self.axes, self.variances, self.axes)
        spread = self.means - mean
        return mean.numpy(), (within + torch.einsum("k,kd,ke->de", self.weights, spread, spread)).numpy()

    def draw(self, seed: int, start: int, count: int) -> tuple[Tensor, Tensor]:
        """Exact samples start .. start + count - 1 of `seed`, (count, *shape), and their classes (count,)."""
        d = self.means.shape[1]
        edges = self.weights.cumsum(0)[:-1]
        component = torch.bucketize(torch.from_numpy(noise.uniform(seed, COMPONENT, start, count, 1)).flatten(), edges)
        z = torch.from_numpy(noise.normal(seed, GAUSS, start, count, (d,))) * self.variances[component].sqrt()
        x = self.means[component] + torch.einsum("be,bde->bd", z, self.axes[component])
        return x.reshape(count, *self.shape), self.component_class[component]


class OnSchedule(nn.Module):
    """The mixture as a network(x, t, y) on a schedule, predicting noise."""

    def __init__(self, mixture: GaussianMixture, schedule: Schedule) -> None:
        super().__init__()
        self.mixture = mixture
        self.schedule = schedule

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.mixture.noise(x, *levels(self.schedule, t.double()), y)


def bundle_tensors(mixture: GaussianMixture) -> dict[str, Tensor]:
    """What a bundle of this mixture holds; `load` reads it back."""
    return {
        "weights": mixture.weights,
        "means": mixture.means.reshape(-1, *mixture.shape),
        "axes": mixture.axes,
        "variances": mixture.variances,
    }


def load(bundle: Bundle) -> Checkpoint:
    """The mixture of a bundle on the VP-linear schedule."""
    mixture = GaussianMixture(**bundle.tensors, classes=bundle.card["classes"])
    schedule = VPLinear()
    class_weights = torch.zeros(mixture.classes, dtype=torch.float64)
    class_weights.index_add_(0, mixture.component_class, mixture.weights)
    return Checkpoint(
        name="gmm",
        digest=bundle.digest,
        network=OnSchedule(mixture, schedule),
        schedule=schedule,
        predicts="noise",
        shape=mixture.shape,
        classes=tuple(class_weights.tolist()),
        kind="vector",
        metrics=("frechet_exact", "trajectory"),
        card=bundle.card,
        moments=mixture.moments,
        draw=lambda seed, start, count: mixture.draw(seed, start, count)[0],
    )
