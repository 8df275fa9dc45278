"""KID, MMD, CMMD and the energy distance: against double loops, other packages, and the spread of repeated data."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
import torch_fidelity
from hypothesis import given
from hypothesis import strategies as st
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

from bench.checkpoints import Task, digits, load
from bench.errors import UsageError
from bench.metrics import Chunk, Context, make_metric
from bench.stats import Floats, spread
from tests.bench.fidelity import NAME
from tests.bench.points import calibration, metric_of, value
from tests.bench.test_digits_features import Bytes

KERNELS = ["kid(features=states)", "mmd(bandwidth=1.5)", "energy", "cmmd(features=states)"]
seeds = st.integers(0, 2**32 - 1)


def two_sets(seed: int = 0, n: int = 70, m: int = 90, d: int = 5) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    return 1.2 * rng.normal(size=(n, d)) + 0.1, rng.normal(size=(m, d))


def looped(k: Callable[[Floats, Floats], float], x: Floats, y: Floats) -> float:
    """The unbiased estimate, pair by pair."""
    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


@pytest.mark.parametrize(("subsets", "size"), [(2, 20), (40, 60), (3, 70)])  # over the subsets' pairs; over all pairs
def test_kid_is_torch_fidelitys_on_the_same_features(subsets: int, size: int) -> None:
    x, y = two_sets()
    u, v = torch.from_numpy(x), torch.from_numpy(y)
    theirs = kid_features_to_metric(u, v, kid_subsets=subsets, kid_subset_size=size, rng_seed=2020, verbose=False)
    found = value(f"kid(features=states, subsets={subsets}, size={size})", x, y)
    assert found.value == pytest.approx(theirs[KEY_METRIC_KID_MEAN], rel=1e-9)
    assert (found.n, found.reference["n"], found.family) == (70, 90, f"states, {subsets} subsets of {size}")


def test_kid_is_torch_fidelitys_on_the_same_images(tmp_path: Path) -> None:
    samples = 255 - digits.real("heldout")
    theirs = torch_fidelity.calculate_metrics(
        input1=Bytes(samples), input2=Bytes(digits.real()), kid=True, kid_subsets=10, kid_subset_size=200,
        feature_extractor=NAME, cuda=False, cache=False, verbose=False, save_cpu_ram=True,
    )  # fmt: skip
    context = Context(load("digits"), 0, Task(), tmp_path, torch.device("cpu"))
    metric = make_metric("kid(features=digits, subsets=10, size=200)", context)
    (found,) = metric.evaluate(metric.extract(Chunk(0, None, samples)), (1.0, 0.0))
    assert found.value == pytest.approx(theirs[KEY_METRIC_KID_MEAN], rel=1e-6)
    assert found.metric == "kid(features=digits, size=200, subsets=10)"


def test_one_subset_of_all_is_the_plain_estimate() -> None:
    x, y = two_sets(n=30, m=30)
    found = value("kid(features=states, subsets=1)", x, y)
    assert found.value == pytest.approx(looped(lambda a, b: (a @ b / 5 + 1) ** 3, x, y), rel=1e-9)
    assert found.family == "states, 1 subsets of 30"


@pytest.mark.parametrize(
    ("text", "kernel"),
    [
        ("mmd(bandwidth=1.5)", lambda a, b: np.exp(-((a - b) ** 2).sum() / (2 * 1.5**2))),
        ("energy", lambda a, b: -np.linalg.norm(a - b)),
    ],
)
def test_distance_is_the_sum_over_pairs(text: str, kernel: Callable[[Floats, Floats], float]) -> None:
    x, y = two_sets(n=30, m=40)
    assert value(text, x, y).value == pytest.approx(looped(kernel, x, y), rel=1e-9)


def test_cmmd_is_the_published_formula() -> None:
    x, y = two_sets(n=30, m=40)
    u, v = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))

    def mean(a: Floats, b: Floats) -> float:
        return float(np.mean([np.exp(-((p - q) ** 2).sum() / 200) for p in a for q in b]))

    expected = 1000 * (mean(u, u) + mean(v, v) - 2 * mean(u, v))
    assert value("cmmd(features=states)", x, y).value == pytest.approx(expected, rel=1e-7)
    assert value("cmmd(features=states)", 7 * x, y).value == pytest.approx(expected, rel=1e-7)


def test_energy_distance_is_scipys_in_one_dimension() -> None:
    x, y = two_sets(d=1)
    unbiased = value("energy", x, y).value
    among = [np.abs(z - z.T).sum() / (len(z) * (len(z) - 1)) / len(z) for z in (x, y)]  # scipy counts i = j too
    assert unbiased + sum(among) == pytest.approx(scipy.stats.energy_distance(x[:, 0], y[:, 0]) ** 2, rel=1e-9)


def test_bandwidth_is_the_median_distance_of_the_reference() -> None:
    x, y = two_sets(m=60)
    distances = [np.linalg.norm(y[i] - y[j]) for i in range(60) for j in range(i)]
    median = float(sorted(distances)[(len(distances) - 1) // 2])
    found = value("mmd", x, y)
    assert found.value == pytest.approx(value(f"mmd(bandwidth={median!r})", x, y).value, rel=1e-12)
    assert found.family == f"states, bandwidth {median:.6g}"


def test_no_bandwidth_where_most_of_the_reference_is_equal() -> None:
    with pytest.raises(UsageError, match="give bandwidth"):
        value("mmd", *two_sets()[:1], np.zeros((50, 5)))


@pytest.mark.parametrize("text", ["kid(features=states, subsets=3, size=25)", "mmd(bandwidth=1.5)", "energy"])
def test_estimates_of_equal_distributions_are_zero_on_average(text: str) -> None:
    rng = np.random.default_rng(0)
    found = [value(text, *rng.normal(size=(2, 30, 3))).value for _ in range(300)]
    assert abs(np.mean(found)) < 3.5 * np.std(found) / 300**0.5
    assert min(found) < 0 < max(found)


@pytest.mark.parametrize("text", ["kid(features=states, subsets=20, size=60)", *KERNELS[1:]])
@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, 0.85, 1.6), (0.4, 0.85, 1.15)])
def test_error_is_the_spread_over_repeated_samples(text: str, shift: float, low: float, high: float) -> None:
    rng = np.random.default_rng(1)
    metric = metric_of(text, rng.normal(size=(200, 4)))
    draws = [rng.normal(size=(150, 4)) + shift for _ in range(250)]
    (ratio,) = calibration(metric, draws).values()
    assert low < ratio < high


def test_subsets_are_drawn_from_the_seed() -> None:
    x, y = two_sets()
    texts = [f"kid(features=states, subsets=2, size=20, seed={seed})" for seed in (1, 2, 1)]
    one, other, again = (value(text, x, y).value for text in texts)
    assert one == again
    assert one != pytest.approx(other, rel=1e-6)


def test_what_metrics_share_of_a_reference_is_of_that_metric_and_those_options() -> None:
    x, y = two_sets()
    texts = ["mmd(bandwidth=1.5)", "mmd(bandwidth=3)", "energy", "cmmd(features=states)"]
    texts += [
        f"kid(features=states, subsets={s}, size={m}, seed={k})" for s, m, k in ((2, 20, 0), (3, 20, 0), (2, 30, 1))
    ]
    context = metric_of("energy", y).context
    for text in texts:
        metric = make_metric(text, context)
        for some in (x, x[:60]):  # of which KID draws other subsets
            assert metric.evaluate(some, ())[0].value == pytest.approx(value(text, some, y).value, rel=1e-12)


@pytest.mark.parametrize("text", KERNELS)
def test_parts_pair_cells_that_share_their_noise(text: str) -> None:
    rng = np.random.default_rng(2)
    metric, differences, errors = metric_of(text, rng.normal(size=(100, 3))), [], []
    for _ in range(150):
        x = rng.normal(size=(150, 3)) + 0.3
        a, b = (metric.evaluate(z, ())[0] for z in (x, x + 0.05 * rng.normal(size=x.shape) + 0.02))
        differences.append(b.value - a.value)
        errors.append(spread(np.subtract(b.parts, a.parts)))
    assert np.mean(errors) == pytest.approx(np.std(differences, ddof=1), rel=0.2)
    assert np.mean(errors) < a.se / 2


@pytest.mark.parametrize("text", KERNELS[1:])
@given(seed=seeds, scale=st.floats(0.1, 10))
def test_order_does_not_matter(text: str, seed: int, scale: float) -> None:
    x, y = two_sets(seed, 12, 15, 3)
    order = np.random.default_rng(seed).permutation(12)
    a, b = value(text, scale * x, y), value(text, scale * x[order], y[::-1].copy())
    assert (a.value, a.se) == pytest.approx((b.value, b.se), rel=1e-6, abs=1e-9)


@given(seed=seeds, shift=st.floats(-1e3, 1e3), scale=st.floats(0.01, 100))
def test_energy_distance_moves_and_scales_with_its_space(seed: int, shift: float, scale: float) -> None:
    x, y = two_sets(seed, 12, 15, 3)
    moved = value("energy", scale * x + shift, scale * y + shift)
    assert moved.value == pytest.approx(scale * value("energy", x, y).value, rel=1e-6, abs=1e-7 * scale)


@pytest.mark.parametrize(
    "text",
    ["kid(features=states, size=1)", "kid(features=states, subsets=0)", "mmd(bandwidth=-1.0)", "mmd(bandwidth=1e999)"],
)
def test_options_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="or more"):
        value(text, *two_sets())
