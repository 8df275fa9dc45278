"""The Frechet engine: its accuracy beside 60 digits, both of its forms, its influences, its extrapolation."""

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.metrics import gaussian
from bench.metrics.gaussian import Gaussian, Matrix, Moments, distance, frechet, richardson

seeds = st.integers(0, 2**32 - 1)


def fitted(x: Matrix) -> Gaussian:
    m = Moments.of(x)
    return Gaussian(m.mean, m.covariance, {})


def drawn(seed: int, n: int, d: int) -> Matrix:
    """Correlated features away from 0."""
    rng = np.random.default_rng(seed)
    return np.asarray(rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) / d**0.5 + rng.normal(size=d))


def in_sixty_digits(x: Matrix, reference: Gaussian) -> float:
    with mpmath.workdps(60):
        features, R = mpmath.matrix(x.tolist()), mpmath.matrix(reference.covariance.tolist())
        n, ones = features.rows, mpmath.ones(features.rows, 1)
        mean = features.T * ones / n
        S = (features - ones * mean.T).T * (features - ones * mean.T) / (n - 1)
        e, Q = mpmath.eigsy(R)
        root = Q * mpmath.diag([mpmath.sqrt(max(value, mpmath.mpf(0))) for value in e]) * Q.T
        between = mpmath.eigsy(root * S * root, eigvals_only=True)
        shift = mean - mpmath.matrix(reference.mean.tolist())
        trace = sum(S[i, i] + R[i, i] for i in range(S.rows))
        return float(
            (shift.T * shift)[0] + trace - 2 * sum(mpmath.sqrt(max(value, mpmath.mpf(0))) for value in between)
        )


@pytest.mark.parametrize("spread", [0, 3, 6])
def test_distance_is_that_of_sixty_digits(spread: int) -> None:
    """`spread`: decades between the largest and the smallest standard deviation."""
    scales = np.logspace(0, -spread, 8)
    x, y = drawn(1, 60, 8) * scales, drawn(2, 70, 8) * scales
    found, expected = distance(Moments.of(x), fitted(y)), in_sixty_digits(x, fitted(y))
    assert found == pytest.approx(expected, rel=1e-12)
    assert frechet(x, fitted(y))[0] == pytest.approx(expected, rel=1e-12)


def test_near_equal_gaussians_are_told_apart() -> None:
    """The distance is a small difference of large traces: what float64 leaves of it."""
    y = drawn(3, 200, 8)
    x = y * (1 + 1e-5)
    expected = in_sixty_digits(x, fitted(y))
    assert expected < 1e-8
    assert distance(Moments.of(x), fitted(y)) == pytest.approx(expected, abs=1e-13)


@given(seed=seeds, n=st.integers(2, 11), d=st.integers(12, 20))
def test_gram_form_is_the_other_one(seed: int, n: int, d: int) -> None:
    x, reference = drawn(seed, n, d), fitted(drawn(seed + 1, 3 * d, d))
    assert frechet(x, reference)[0] == pytest.approx(distance(Moments.of(x), reference), rel=1e-6)


@pytest.mark.parametrize("seed", range(6))  # of which some round the eigenvalue that is 0 up
def test_gram_form_is_that_of_sixty_digits(seed: int) -> None:
    """The other one is off by the roots of the rounding errors of eigenvalues that are 0."""
    x, reference = drawn(seed, 6, 9), fitted(drawn(100 + seed, 40, 9))
    assert frechet(x, reference)[0] == pytest.approx(in_sixty_digits(x, reference), rel=1e-12)


def test_gram_forms_influences_are_those_of_the_pseudo_inverse() -> None:
    x, reference = drawn(5, 9, 12), fitted(drawn(6, 60, 12))
    z, L = x - x.mean(0), reference.factor
    e, Q = np.linalg.eigh(L.T @ Moments.of(x).covariance @ L)
    kept = e > 1e-10 * e[-1]
    T = L @ (Q[:, kept] / np.sqrt(e[kept])) @ Q[:, kept].T @ L.T
    expected = 2 * z @ (x.mean(0) - reference.mean) + (z**2).sum(1) - np.einsum("ni,ij,nj->n", z, T, z)
    np.testing.assert_allclose(frechet(x, reference)[1], expected, atol=1e-9)


def test_influence_is_the_slope_of_the_distance_in_a_samples_weight() -> None:
    """Weights change the covariance that divides by N; ours divides by N - 1, and is the same at N of many."""
    n = 40
    x, reference = drawn(7, n, 5), fitted(drawn(8, 50, 5))

    def weighted(i: int, more: float) -> float:
        w = np.full(n, (1 - more) / n)
        w[i] += more
        mean = w @ x
        covariance = ((x - mean).T * w) @ (x - mean) * n / (n - 1)
        return distance(Moments(n, mean, covariance * (n - 1)), reference)

    h, influence = 1e-6, frechet(x, reference)[1]
    slopes = np.array([(weighted(i, h) - weighted(i, -h)) / (2 * h) for i in range(n)])
    quadratic = influence - 2 * (x - x.mean(0)) @ (x.mean(0) - reference.mean)
    expected = influence + quadratic / (n - 1)  # of the covariance's part alone
    np.testing.assert_allclose(slopes, expected - expected.mean(), atol=1e-6 * np.abs(slopes).max())


@given(seed=seeds, n=st.integers(30, 60))
def test_streaming_changes_nothing(seed: int, n: int) -> None:
    x, reference = drawn(seed, n, 6), fitted(drawn(seed + 1, 40, 6))
    whole = frechet(x, reference)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gaussian, "CHUNK", 7)
        streamed = frechet(x, reference)
    assert streamed[0] == pytest.approx(whole[0], rel=1e-10)
    np.testing.assert_allclose(streamed[1], whole[1], atol=1e-9 * np.abs(whole[1]).max())


def test_features_in_single_precision_are_summed_in_double() -> None:
    x = (drawn(9, 4000, 4) + 1000).astype(np.float32)
    np.testing.assert_allclose(Moments.of(x).covariance, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-9)


def test_a_singular_reference_has_a_factor() -> None:
    y = drawn(10, 50, 4) @ np.eye(4, 7)  # rank 4 of 7
    L = fitted(y).factor
    np.testing.assert_allclose(L @ L.T, fitted(y).covariance, atol=1e-12)
    np.testing.assert_allclose(L, np.tril(L))
    assert frechet(y, fitted(y))[0] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("n", [3, 50])
@pytest.mark.filterwarnings("error")
def test_equal_samples_have_a_distance_and_pull_at_it_in_no_direction(n: int) -> None:
    value, influence = frechet(np.full((n, 4), 2.0), Gaussian(np.zeros(4), np.eye(4), {}))
    assert value == pytest.approx(4 * 2.0**2 + 4)
    assert np.abs(influence).max() == 0


@pytest.mark.parametrize("n", [80, 240])
def test_extrapolation_takes_out_most_of_the_bias(n: int) -> None:
    d, repetitions = 20, 200
    reference, rng = Gaussian(np.zeros(d), np.eye(d), {}), np.random.default_rng(11)
    raw, extrapolated = [], []
    for _ in range(repetitions):
        x = rng.normal(0.1, 1, size=(n, d))
        raw.append(frechet(x, reference)[0])
        limit = richardson(x, reference, raw[-1])
        assert limit is not None
        extrapolated.append(limit[0])
    truth = 0.1**2 * d
    bias = np.mean(raw) - truth
    assert bias > 0.5 * d * d / n / 4  # what samples of an equal covariance would show, to leading order
    assert abs(np.mean(extrapolated) - truth) < 0.35 * bias
