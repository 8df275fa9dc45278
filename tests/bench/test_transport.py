"""The sliced Wasserstein distance: against POT, finite differences, and the spread of repeated data."""

import numpy as np
import ot
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import UsageError
from bench.metrics.transport import potentials
from tests.bench.points import calibration, metric_of, value


def test_value_is_pots() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(80, 5)) + 0.3, rng.normal(size=(110, 5))
    found = value("sliced_wasserstein(projections=40, seed=3)", x, y)
    assert found.value == pytest.approx(ot.sliced_wasserstein_distance(x, y, n_projections=40, seed=3), rel=1e-12)
    assert (found.n, found.reference["n"], found.family) == (80, 110, "states, 40 projections")


def test_along_a_line_it_is_the_distance_of_quantiles() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 1)), rng.normal(size=(50, 1)) + 1
    expected = np.sqrt(((np.sort(x, 0) - np.sort(y, 0)) ** 2).mean())
    assert value("sliced_wasserstein(projections=1)", x, y).value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(30, 41), (41, 30), (7, 100)])
def test_potentials_are_what_a_samples_weight_changes(n: int, m: int) -> None:
    rng, eps = np.random.default_rng(0), 1e-7
    x, y = rng.normal(size=(n, 3)), 1.5 * rng.normal(size=(m, 3)) + 0.4
    even = np.full(n, 1 / n)
    before, expected = ot.wasserstein_1d(x, y, even, p=2), np.empty((n, 3))
    for i in range(n):
        a = (1 - eps) * even + eps * np.eye(n)[i]
        expected[i] = (ot.wasserstein_1d(x, y, a, p=2) - before) / eps
    found = potentials(x, y)
    np.testing.assert_allclose(found - found.mean(0), expected, atol=1e-5)


@pytest.mark.parametrize(("shift", "scale", "high"), [(0.5, 1.0, 1.2), (0.0, 1.5, 1.2), (0.0, 1.0, 1.7)])
def test_error_is_the_spread_over_repeated_samples_or_more(shift: float, scale: float, high: float) -> None:
    rng = np.random.default_rng(1)
    metric = metric_of("sliced_wasserstein(projections=30)", rng.normal(size=(300, 4)))
    (ratio,) = calibration(metric, [scale * rng.normal(size=(200, 4)) + shift for _ in range(200)]).values()
    assert 0.85 < ratio < high


def test_nothing_lies_between_a_set_and_itself() -> None:
    x = np.random.default_rng(0).normal(size=(40, 3))
    found = value("sliced_wasserstein", x, x[::-1].copy())
    assert (found.value, found.se) == pytest.approx((0.0, 0.0), abs=1e-12)
    assert value("sliced_wasserstein", np.ones((9, 2)), np.ones((4, 2))).value == 0


@given(seed=st.integers(0, 2**32 - 1), shift=st.floats(-10, 10), scale=st.floats(0.1, 10))
def test_it_moves_and_scales_with_its_space_and_knows_no_order(seed: int, shift: float, scale: float) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(20, 3)), 2 * rng.normal(size=(15, 3))
    a = value("sliced_wasserstein(projections=8)", x, y)
    b = value("sliced_wasserstein(projections=8)", scale * x[rng.permutation(20)] + shift, scale * y + shift)
    assert (b.value, b.se) == pytest.approx((scale * a.value, scale * a.se), rel=1e-6)


@pytest.mark.parametrize("option", ["projections=0", "seed=-1"])
def test_options_that_mean_nothing_are_refused(option: str) -> None:
    with pytest.raises(UsageError, match="or more"):
        metric_of(f"sliced_wasserstein({option})", np.eye(3))
