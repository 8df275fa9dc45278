"""The inception score: against torch-fidelity, its bounds, and the spread of repeated data."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

from bench.checkpoints import Task, digits, load
from bench.errors import UsageError
from bench.metrics import Chunk, Context, Metric, make_metric
from bench.stats import Floats
from tests.bench.fidelity import NAME
from tests.bench.points import calibration
from tests.bench.test_digits_features import Bytes


def score(splits: int = 10) -> Metric:
    context = Context(load("digits"), 0, Task(), Path("unused"), torch.device("cpu"))
    return make_metric(f"inception_score(features=digits_logits, splits={splits})", context)


def evaluate(logits: Floats, splits: int = 10) -> tuple[float, float]:
    (found,) = score(splits).evaluate(logits, ())
    assert (found.n, found.better) == (len(logits), "higher")
    assert found.family.endswith(f", {splits} splits")
    return found.value, found.se


@pytest.mark.parametrize(("n", "splits"), [(200, 10), (137, 10), (50, 1), (40, 20)])
def test_value_is_torch_fidelitys_on_the_same_logits(n: int, splits: int) -> None:
    logits = 3 * np.random.default_rng(n).normal(size=(n, 7)).astype(np.float32)
    theirs = isc_features_to_metric(torch.from_numpy(logits), splits=splits, shuffle=True, rng_seed=2020)
    assert evaluate(logits, splits)[0] == pytest.approx(theirs[KEY_METRIC_ISC_MEAN], rel=1e-12)


def test_value_is_torch_fidelitys_on_the_same_images() -> None:
    images = digits.real("heldout")
    theirs = torch_fidelity.calculate_metrics(
        input1=Bytes(images), isc=True, feature_extractor=NAME, cuda=False, cache=False, verbose=False,
        save_cpu_ram=True,
    )  # fmt: skip
    metric = score()
    (found,) = metric.evaluate(metric.extract(Chunk(0, None, images)), ())
    assert found.value == pytest.approx(theirs[KEY_METRIC_ISC_MEAN], rel=1e-6)
    assert found.value > 7


def test_bounds() -> None:
    assert evaluate(np.ones((100, 5)))[0] == pytest.approx(1.0)
    assert evaluate(200 * np.eye(5)[np.arange(100) % 5], splits=1) == pytest.approx((5.0, 0.0), abs=1e-9)
    assert evaluate(1e4 * np.eye(5)[np.zeros(100, int)])[0] == pytest.approx(1.0)  # classes of probability zero


def test_influence_is_what_a_sample_changes() -> None:
    logits, eps = 2 * np.random.default_rng(0).normal(size=(60, 4)), 1e-6
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

    def weighted(w: Floats) -> float:
        q = w @ p / w.sum()
        return float(np.exp(w @ (p * np.log(p / q)).sum(1) / w.sum()))

    one = [(weighted(np.ones(60) + 60 * eps * np.eye(60)[i]) - weighted(np.ones(60))) / eps for i in range(60)]
    (found,) = score(1).evaluate(logits, ())
    assert found.value == pytest.approx(weighted(np.ones(60)), rel=1e-12)
    np.testing.assert_allclose(np.array(found.parts) * 60, one, rtol=1e-3, atol=1e-3)


def test_error_is_the_spread_over_repeated_samples() -> None:
    rng = np.random.default_rng(0)
    (ratio,) = calibration(score(), [2 * rng.normal(size=(500, 6)) for _ in range(300)]).values()
    assert 0.85 < ratio < 1.15


def test_too_few_samples_for_the_splits_are_refused() -> None:
    score().check(20)
    with pytest.raises(UsageError, match="19 samples for 10 splits: take 20"):
        score().check(19)
    with pytest.raises(UsageError, match="splits=0: give 1 or more"):
        score(0)
