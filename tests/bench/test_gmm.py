"""The Gaussian mixture: its noise prediction, its exact draws and its exact moments."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import MultivariateNormal

from bench.checkpoints import load
from bench.checkpoints.gmm import GaussianMixture

CLASSES = 3
MIXTURE = GaussianMixture.random(3, k=5, shape=(2, 3), classes=CLASSES)


def log_density(m: GaussianMixture, x: Tensor, alpha: float, sigma: float, y: int | None) -> Tensor:
    """log p(x_t | class y) up to a constant, component by component from its covariance matrix."""
    members = [k for k in range(len(m.weights)) if y is None or k % m.classes == y]
    eye = torch.eye(m.means.shape[1], dtype=torch.float64)
    parts = []
    for k in members:
        covariance = alpha**2 * m.axes[k] @ m.variances[k].diag() @ m.axes[k].T + sigma**2 * eye
        parts.append(m.weights[k].log() + MultivariateNormal(alpha * m.means[k], covariance).log_prob(x.flatten(1)))
    return torch.stack(parts).logsumexp(0)


def inputs(n: int = 8) -> Tensor:
    return torch.randn(n, *MIXTURE.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("y", [None, 0, 1, 2])
@given(angle=st.floats(0.02, 1.55), size=st.floats(0.2, 5))
@settings(deadline=None, max_examples=25)
def test_noise_prediction_is_minus_sigma_times_the_score(y: int | None, angle: float, size: float) -> None:
    alpha, sigma = size * torch.cos(torch.tensor(angle)).item(), size * torch.sin(torch.tensor(angle)).item()
    x = inputs().requires_grad_()
    (score,) = torch.autograd.grad(log_density(MIXTURE, x, alpha, sigma, y).sum(), x)
    labels = None if y is None else torch.full((len(x),), y)
    noise = MIXTURE.noise(x.detach(), alpha, sigma, labels)
    torch.testing.assert_close(noise, -sigma * score, rtol=1e-10, atol=1e-10)


def test_the_label_after_the_last_class_means_no_class() -> None:
    x = inputs()
    none = MIXTURE.noise(x, 0.6, 0.8)
    assert torch.equal(MIXTURE.noise(x, 0.6, 0.8, torch.full((len(x),), CLASSES)), none)
    assert not torch.allclose(MIXTURE.noise(x, 0.6, 0.8, torch.zeros(len(x), dtype=torch.int64)), none)


def test_each_sample_of_a_batch_has_its_own_label() -> None:
    x, y = inputs(4), torch.tensor([0, 3, 2, 1])
    rows = [MIXTURE.noise(x[i : i + 1], 0.6, 0.8, y[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(MIXTURE.noise(x, 0.6, 0.8, y), torch.cat(rows), rtol=0, atol=1e-12)


def test_noise_prediction_has_the_precision_of_its_input() -> None:
    x = inputs()
    single = MIXTURE.noise(x.float(), 0.6, 0.8)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), MIXTURE.noise(x, 0.6, 0.8), rtol=0, atol=1e-5)


def test_moments_of_one_component_are_its_own() -> None:
    one = GaussianMixture.random(0, k=1, shape=(4,), classes=1)
    mean, covariance = one.moments()
    torch.testing.assert_close(torch.from_numpy(mean), one.means[0], rtol=0, atol=1e-15)
    expected = one.axes[0] @ one.variances[0].diag() @ one.axes[0].T
    torch.testing.assert_close(torch.from_numpy(covariance), expected, rtol=0, atol=1e-15)


def test_moments_of_two_points_are_a_coins() -> None:
    a, b, p = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([-1.0, 0.5, 3.0]), 0.3
    eye = torch.eye(3).expand(2, 3, 3)
    two = GaussianMixture(torch.tensor([p, 1 - p]), torch.stack([a, b]), eye, torch.zeros(2, 3), 1)
    mean, covariance = map(torch.from_numpy, two.moments())
    torch.testing.assert_close(mean, (p * a + (1 - p) * b).double(), rtol=0, atol=1e-7)
    torch.testing.assert_close(covariance, p * (1 - p) * torch.outer(a - b, a - b).double(), rtol=0, atol=1e-7)


def test_moments_agree_with_exact_draws_within_sampling_error() -> None:
    n = 40_000
    x = MIXTURE.draw(0, 0, n)[0].flatten(1)
    mean, covariance = map(torch.from_numpy, MIXTURE.moments())
    assert ((x.mean(0) - mean).abs() < 5 * (covariance.diag() / n).sqrt()).all()
    products = (x - mean)[:, :, None] * (x - mean)[:, None]
    assert ((products.mean(0) - covariance).abs() < 5 * products.std(0) / n**0.5).all()


def test_draws_of_a_class_come_from_its_components() -> None:
    n = 40_000
    x, y = MIXTURE.draw(0, 0, n)
    for label in range(CLASSES):
        weights = MIXTURE.weights[label::CLASSES]
        share = weights.sum()
        assert abs((y == label).double().mean() - share) < 5 * (share * (1 - share) / n) ** 0.5
        mean = (weights / share) @ MIXTURE.means[label::CLASSES]
        members = x[y == label].flatten(1)
        assert ((members.mean(0) - mean).abs() < 5 * members.std(0) / len(members) ** 0.5).all()


@given(seed=st.integers(0, 2**62), start=st.integers(0, 10**6), cuts=st.lists(st.integers(0, 12), max_size=3))
@settings(deadline=None, max_examples=30)
def test_draws_do_not_depend_on_how_they_are_split(seed: int, start: int, cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), 12]
    parts = [MIXTURE.draw(seed, start + a, b - a) for a, b in pairwise(edges)]
    x, y = MIXTURE.draw(seed, start, 12)
    torch.testing.assert_close(torch.cat([p[0] for p in parts]), x, rtol=0, atol=1e-14)
    assert torch.equal(torch.cat([p[1] for p in parts]), y)


def test_draws_of_other_seeds_and_indices_are_others() -> None:
    x, _ = MIXTURE.draw(0, 0, 8)
    assert not torch.isclose(x, MIXTURE.draw(1, 0, 8)[0]).any()
    assert len(x.unique(dim=0)) == 8


def test_draws_of_large_seeds_differ_too() -> None:
    assert not torch.equal(MIXTURE.draw(2**63, 0, 8)[0], MIXTURE.draw(2**63 + 1, 0, 8)[0])


def test_the_shipped_mixture_knows_its_class_probabilities() -> None:
    checkpoint = load("gmm")
    weights = checkpoint.network.mixture.weights
    assert checkpoint.classes == pytest.approx([weights[c::3].sum().item() for c in range(3)])
    shares = checkpoint.labels(0, 0, 20_000).bincount() / 20_000
    assert shares.tolist() == pytest.approx(checkpoint.classes, abs=0.02)
