"""The Frechet distance, its moments and its standard error."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.checkpoints import Task, load
from bench.errors import UsageError
from bench.metrics import Context, make_metric
from bench.metrics.gaussian import Gaussian, Matrix, Moments, distance, frechet, richardson
from bench.stats import Floats
from tests.bench.points import metric_of

seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 12)


def moments(mean: Matrix, covariance: Matrix, n: int = 100) -> Moments:
    return Moments(n, mean, covariance * (n - 1))


def standard_error(x: Floats, reference: Gaussian) -> float:
    return float(frechet(x, reference)[1].std(ddof=1) / len(x) ** 0.5)


def spd(rng: np.random.Generator, d: int) -> Matrix:
    A = rng.normal(size=(d, 2 * d + 2))
    return A @ A.T / (2 * d)


@given(seed=seeds, d=sizes)
@settings(deadline=None, max_examples=30)
def test_distance_of_diagonal_gaussians_has_a_closed_form(seed: int, d: int) -> None:
    rng = np.random.default_rng(seed)
    (a, b), (s, r) = rng.normal(size=(2, d)), rng.uniform(0.1, 2, size=(2, d))
    found = distance(moments(a, np.diag(s**2)), Gaussian(b, np.diag(r**2), {}))
    assert found == pytest.approx(((a - b) ** 2).sum() + ((s - r) ** 2).sum(), rel=1e-9)


@given(seed=seeds, d=sizes)
@settings(deadline=None, max_examples=30)
def test_distance_is_that_of_the_matrix_square_root(seed: int, d: int) -> None:
    rng = np.random.default_rng(seed)
    (a, b), S, R = rng.normal(size=(2, d)), spd(rng, d), spd(rng, d)
    expected = ((a - b) ** 2).sum() + np.trace(S + R - 2 * scipy.linalg.sqrtm(S @ R).real)
    assert distance(moments(a, S), Gaussian(b, R, {})) == pytest.approx(expected, rel=1e-9)


@given(seed=seeds, d=st.integers(2, 12), singular=st.booleans())
@settings(deadline=None, max_examples=50)
def test_distance_between_equals_is_zero(seed: int, d: int, singular: bool) -> None:
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(d, d // 2))
    mean, S = rng.normal(size=d), A @ A.T if singular else spd(rng, d)
    assert distance(moments(mean, S), Gaussian(mean, S, {})) <= 1e-10


@given(seed=seeds, d=sizes, rank=sizes, nearly=st.floats(0, 1e-6))
@settings(deadline=None, max_examples=50)
def test_distance_is_never_negative(seed: int, d: int, rank: int, nearly: float) -> None:
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(d, rank))
    mean, S = rng.normal(size=d), A @ A.T
    assert distance(moments(mean, S), Gaussian(mean, S * (1 + nearly), {})) >= 0


@given(seed=seeds, cut=st.integers(1, 39), scale=st.floats(1e-3, 1e3), offset=st.floats(-10, 10))
@settings(deadline=None, max_examples=50)
def test_moments_of_two_parts_add_up_to_those_of_the_whole(seed: int, cut: int, scale: float, offset: float) -> None:
    x = scale * (np.random.default_rng(seed).normal(size=(40, 3)) + offset)
    whole, added = Moments.of(x), Moments.of(x[:cut]) + Moments.of(x[cut:])
    assert added.n == whole.n
    np.testing.assert_allclose(added.mean, whole.mean, rtol=1e-12, atol=1e-12 * abs(x).max())
    np.testing.assert_allclose(added.scatter, whole.scatter, rtol=1e-12, atol=1e-12 * (x**2).sum())


@given(seed=seeds, n=st.integers(2, 30))
@settings(deadline=None, max_examples=30)
def test_covariance_is_the_unbiased_one(seed: int, n: int) -> None:
    x = np.random.default_rng(seed).normal(size=(n, 4)).astype(np.float32)
    np.testing.assert_allclose(Moments.of(x).covariance, np.cov(x.astype(np.float64), rowvar=False), atol=1e-14)


def test_a_constant_feature_changes_neither_distance_nor_error() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 4)), rng.normal(0.2, 1.3, size=(300, 4))
    found = []
    for pad in (0, 1):
        u, v = (np.pad(z, ((0, 0), (0, pad)), constant_values=3.0) for z in (x, y))
        m, r = Moments.of(u), Moments.of(v)
        reference = Gaussian(r.mean, r.covariance, {})
        found.append((distance(m, reference), standard_error(u, reference)))
    assert found[1] == pytest.approx(found[0], rel=1e-9)


@pytest.mark.parametrize(("shift", "scale"), [(0.3, 1.0), (0.0, 1.4), (0.15, 0.8)])
def test_predicted_error_is_the_spread_of_repeated_distances(shift: float, scale: float) -> None:
    d, n, repetitions = 8, 400, 600
    rng = np.random.default_rng(7)
    mixing = rng.normal(size=(d, d)) / d**0.5
    reference = Gaussian(np.zeros(d), mixing @ mixing.T + 0.1 * np.eye(d), {})
    factor = scale * np.linalg.cholesky(reference.covariance)
    distances, errors = [], []
    for _ in range(repetitions):
        x = rng.normal(size=(n, d)) @ factor.T + shift
        m = Moments.of(x)
        distances.append(distance(m, reference))
        errors.append(standard_error(x, reference))
    assert np.mean(errors) == pytest.approx(np.std(distances, ddof=1), rel=0.15)


def test_exact_distance_of_exact_draws_falls_with_their_number(tmp_path: Path) -> None:
    checkpoint = load("gmm")
    metric = make_metric("frechet_exact", Context(checkpoint, 0, Task(), tmp_path, torch.device("cpu")))
    x = checkpoint.network.mixture.draw(0, 0, 20_000)[0].flatten(1).numpy()
    few, many = (metric.evaluate(x[:n], (1.0, 0.0))[0] for n in (1000, 20_000))
    assert (few.n, many.n, many.metric, many.family) == (1000, 20_000, "frechet_exact", "states")
    assert many.value < few.value / 10 < 0.1
    assert 0 < many.se < few.se


@pytest.mark.parametrize(("name", "needs"), [("frechet_pixels", "need images"), ("frechet_digits", "need images")])
def test_a_metric_refuses_a_checkpoint_that_lacks_what_it_needs(name: str, needs: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=needs):
        make_metric(name, Context(load("gmm"), 0, Task(), tmp_path, torch.device("cpu")))


def test_the_limit_is_known_by_the_samples_and_by_what_extrapolation_leaves() -> None:
    rng = np.random.default_rng(0)
    x, real = rng.normal(size=(60, 5)), rng.normal(size=(80, 5))
    metric = metric_of("frechet_exact", real)
    (found,) = metric.evaluate(x, ())
    limit = richardson(x, metric.reference.gaussian, found.value)
    assert limit is not None
    assert found.at_infinity == pytest.approx((limit[0], (found.se**2 + limit[1] ** 2) ** 0.5))
    assert limit[1] > 0.01 * found.se


def test_a_covariance_that_would_not_fit_is_refused(tmp_path: Path) -> None:
    large = replace(load("digits"), shape=(3, 128, 128), image_shape=())
    with pytest.raises(UsageError, match="covariance of 49152 features is too large"):
        make_metric("frechet_pixels", Context(large, 0, Task(), tmp_path, torch.device("cpu")))
