"""Precision, recall, density and coverage: against loops over all pairs, torch-fidelity, and repeated data."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_fidelity.metric_prc import calculate_precision_recall_full

from bench.errors import UsageError
from bench.metrics import make_metric
from bench.metrics.neighbours import radii
from bench.stats import Floats, groups_of, jackknife, spread
from tests.bench.points import calibration, metric_of, values

NAMES = ["precision", "recall", "density", "coverage"]
LABEL = "(features=states, k={})"


def numbers(x: Floats, y: Floats, k: int) -> dict[str, float]:
    found = values(f"prdc(features=states, k={k})", x, y)
    assert all(v.metric.endswith(LABEL.format(k) if k != 5 else "(features=states)") for v in found)
    return {v.metric.partition("(")[0]: v.value for v in found}


def looped(x: Floats, y: Floats, k: int) -> dict[str, float]:
    """All four by their definitions, in integers where the points are."""

    def squared(a: Floats, b: Floats) -> float:
        return float(((a - b) ** 2).sum())

    def radius(points: Floats, i: int) -> float:
        return sorted(squared(points[i], points[j]) for j in range(len(points)) if j != i)[k - 1]

    of_x, of_y = ([radius(z, i) for i in range(len(z))] for z in (x, y))
    inside = np.array([[squared(a, b) <= r for b, r in zip(y, of_y, strict=True)] for a in x])
    reached = np.array([[squared(a, b) <= r for a, r in zip(x, of_x, strict=True)] for b in y])
    found = (inside.any(1).mean(), reached.any(1).mean(), inside.sum(1).mean() / k, inside.any(0).mean())
    return dict(zip(NAMES, map(float, found), strict=True))


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("grid", [3, 10, 1000])  # how many values a coordinate has: few make duplicates and ties
def test_numbers_are_their_definitions(k: int, grid: int) -> None:
    rng = np.random.default_rng(k)
    x, y = rng.integers(0, grid, size=(40, 3)) + 0.0, rng.integers(0, grid, size=(33, 3)) + grid // 4
    assert numbers(x, y, k) == pytest.approx(looped(x, y, k), abs=1e-12)


@given(seed=st.integers(0, 2**32 - 1), shift=st.floats(-100, 100), scale=st.sampled_from([1e-3, 0.1, 1.0, 7.3]))
def test_ties_stay_ties_wherever_the_points_lie(seed: int, shift: float, scale: float) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 4, size=(20, 3)) + 0.0, rng.integers(0, 4, size=(18, 3)) + 0.0
    assert numbers(scale * (x + shift), scale * (y + shift), 2) == pytest.approx(looped(x, y, 2), abs=1e-12)


def test_precision_and_recall_are_torch_fidelitys() -> None:
    rng = np.random.default_rng(0)
    x, y = 1.3 * rng.normal(size=(150, 6)) + 0.5, rng.normal(size=(140, 6))
    precision, recall = calculate_precision_recall_full(torch.from_numpy(x), torch.from_numpy(y), neighborhood=3)
    found = numbers(x, y, 3)
    assert (found["precision"], found["recall"]) == pytest.approx((precision, recall), abs=1e-6)
    assert 0.1 < precision < 0.9 < recall < 1 or 0.1 < recall < 0.9


def test_equal_sets_are_in_each_others_balls() -> None:
    x = np.random.default_rng(0).normal(size=(60, 4))
    assert numbers(x, x, 3) == pytest.approx(looped(x, x, 3) | dict.fromkeys(NAMES[:2] + NAMES[3:], 1.0))
    same = np.ones((30, 4))
    assert numbers(same, same, 5) == pytest.approx(dict.fromkeys(NAMES, 1.0) | {"density": 6.0})


def test_one_sample_far_away_changes_little() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 100, 4))
    before, after = numbers(x, y, 5), numbers(np.concatenate([x[:-1], [[1e8, 0, 0, 0]]]), y, 5)
    assert after == pytest.approx(before, abs=0.03)


@pytest.mark.parametrize("n", [23, 47])
def test_errors_leave_out_groups_of_samples(n: int) -> None:
    rng = np.random.default_rng(0)
    x, y = 0.7 * rng.normal(size=(n, 3)), rng.normal(size=(n, 3))
    found = {v.metric.partition("(")[0]: v for v in values("prdc(features=states, k=2)", x, y)}
    for name in ("recall", "coverage"):
        expected = jackknife(lambda kept, name=name: looped(x[kept], y, 2)[name], n)
        assert found[name].parts == pytest.approx(expected, abs=1e-5)
        assert 0 < found[name].se == pytest.approx(spread(expected), rel=1e-3)


def test_radii_without_a_group_are_those_of_the_others() -> None:
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(47, 3)))
    group = groups_of(47)
    found = radii(x, 3, np.bincount(group).tolist())
    for g in range(20):
        kept = torch.from_numpy(group != g)
        torch.testing.assert_close(found[kept, 1 + g], radii(x[kept], 3, [int(kept.sum())])[:, 0], rtol=1e-9, atol=0)
        assert (found[~kept, 1 + g] == -1).all()


@pytest.mark.parametrize("shift", [0.0, 0.6])
def test_errors_are_the_spread_over_repeated_samples_or_more(shift: float) -> None:
    rng = np.random.default_rng(1)
    metric = metric_of("prdc(features=states)", rng.normal(size=(200, 4)))
    ratio = calibration(metric, [rng.normal(size=(200, 4)) + shift for _ in range(120)])
    for name, low, high in (("precision", 0.8, 1.2), ("density", 0.8, 1.2), ("recall", 0.9, 2), ("coverage", 0.9, 2)):
        assert low < ratio[name + "(features=states)"] < high


def test_larger_references_are_cut_to_the_number_of_samples() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 3)), rng.normal(size=(3000, 3))
    found = values("prdc(features=states)", x, y)
    assert {(v.n, v.reference["n"], v.family, v.better) for v in found} == {(300, 300, "states, k=5", "higher")}
    assert metric_of("prdc(features=states)", y).numbers == [v.metric for v in found]
    assert found[3].value > 0.9  # in balls to the fifth of 3,000, a third of them would be empty


def test_too_few_samples_are_refused() -> None:
    metric = metric_of("prdc(features=states)", np.eye(30))
    metric.check(11)
    with pytest.raises(UsageError, match=r"10 samples are too few for k=5: take 11"):
        metric.check(10)
    for k in range(1, 30):  # so that no group leaves fewer behind than neighbours are asked for
        x = np.random.default_rng(k).normal(size=(2 * k + 1, 2))
        assert all(0 <= v.value < np.inf for v in values(f"prdc(features=states, k={k})", x, np.eye(80)[:, :2]))


def test_too_small_a_reference_is_refused() -> None:
    with pytest.raises(UsageError, match="6 images or more"):
        values("prdc(features=states)", np.eye(20)[:, :5], np.eye(5))


def test_k_is_at_least_one() -> None:
    with pytest.raises(UsageError, match="k=0: give 1 or more"):
        metric_of("prdc(features=states, k=0)", np.eye(5))


def test_balls_that_metrics_share_are_of_their_own_k() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 60, 3))
    context = metric_of("prdc(features=states)", y).context
    for text in ("prdc(features=states)", "prdc(features=states, k=2)"):
        metric = make_metric(text, context)
        for some in (x, x[:40]):
            assert metric.evaluate(some, ()) == values(text, some, y)
