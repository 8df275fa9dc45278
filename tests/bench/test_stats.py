"""Errors of estimates and of their differences, against textbook tests, brute force and repeated data."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bench import stats as ours
from bench.stats import Difference, Estimate, Floats, agreement, combine, difference, holm, parts_of, spread

RNG = np.random.default_rng(3)
X, Y = RNG.normal(size=150), RNG.normal(size=150)
Y = 0.9 * X + 0.2 * Y + 0.02


def mean_of(x: Floats, seed: int = 0) -> Estimate:
    return Estimate(x.mean(), x.std(ddof=1) / len(x) ** 0.5, len(x), (seed,), parts_of(x - x.mean()))


def test_parts_add_up_to_nothing_and_spread_as_the_standard_error() -> None:
    x = np.random.default_rng(0).gamma(2.0, size=10_000)
    parts = parts_of(x - 7)
    assert len(parts) == 200
    assert sum(parts) == pytest.approx(0, abs=1e-6)
    assert spread(parts) == pytest.approx(x.std() / 100, rel=0.15)


def test_the_spread_of_a_few_parts_is_exact() -> None:
    assert spread(parts_of(X[:5])) == pytest.approx(X[:5].std(ddof=1) / 5**0.5, rel=1e-4)


def test_blocks_are_of_about_one_size() -> None:
    half = np.repeat([1.0, -1.0], 199)  # in 200 blocks of one or two
    assert np.abs(np.array(parts_of(half)) * 398).max() == pytest.approx(2, rel=1e-4)


def test_the_jackknife_of_a_mean_is_its_group_means() -> None:
    x = np.random.default_rng(0).normal(size=400)
    parts = ours.jackknife(lambda kept: float(x[kept].mean()), len(x))
    np.testing.assert_allclose(parts, (x.reshape(20, 20).mean(1) - x.mean()) / 20, rtol=1e-4, atol=1e-12)
    assert math.isnan(spread(parts[:1]))


def test_a_paired_difference_of_means_is_the_paired_t_test() -> None:
    found, textbook = difference(mean_of(X), mean_of(Y)), stats.ttest_rel(X, Y)
    assert found.paired
    assert (found.value / found.se, found.dof) == (pytest.approx(textbook.statistic, rel=1e-3), textbook.df)
    assert found.p == pytest.approx(textbook.pvalue, rel=1e-2)
    assert found.interval == pytest.approx(tuple(textbook.confidence_interval(0.95)), rel=1e-3)
    assert found.se < difference(mean_of(X), mean_of(Y, seed=1)).se / 3


@pytest.mark.parametrize("change", [{"seeds": (1,)}, {"n": 149}, {"parts": (1.0,) * 20}, {"parts": ()}])
def test_what_shares_no_noise_is_taken_as_independent(change: dict[str, object]) -> None:
    a, b = mean_of(X), replace(mean_of(Y), **change)
    found = difference(a, b)
    assert not found.paired
    assert found.se == pytest.approx(math.hypot(a.se, b.se))


def test_the_standard_errors_say_how_large_and_the_parts_only_how_alike() -> None:
    a, b = mean_of(X), mean_of(Y)
    larger = difference(replace(a, se=3 * a.se), replace(b, se=3 * b.se))
    assert larger.se == pytest.approx(3 * difference(a, b).se)


def test_the_error_of_a_paired_difference_is_the_spread_of_repeated_ones() -> None:
    rng, gaps, errors = np.random.default_rng(1), [], []
    for _ in range(400):
        x = rng.normal(size=(1000, 1))
        a, b = (mean_of(((scale * x + 0.1 * rng.normal(size=x.shape)) ** 2)[:, 0]) for scale in (1.0, 1.1))
        found = difference(a, b)
        gaps.append(found.value)
        errors.append(found.se)
    assert np.mean(errors) == pytest.approx(np.std(gaps), rel=0.1)


@pytest.mark.parametrize(
    ("value", "se", "tie"),
    [(1.9, 1.0, True), (-1.9, 1.0, True), (2.1, 1.0, False), (-2.1, 1.0, False), (0, 0, True), (1, 0, False),
     (1.0, float("nan"), True)],
)  # fmt: skip
def test_a_tie_is_less_than_two_standard_errors(value: float, se: float, tie: bool) -> None:
    found = Difference(value, se, 199, True)
    assert found.tie is tie
    assert (found.p > 0.04) is tie


def test_seeds_combine_into_their_mean_whatever_their_order() -> None:
    seeds = [mean_of(RNG.normal(size=150), seed) for seed in range(3)]
    found = combine(seeds)
    assert found == combine(seeds[::-1])
    assert (found.seeds, found.n, len(found.parts)) == ((0, 1, 2), 150, 450)
    assert found.value == pytest.approx(np.mean([e.value for e in seeds]))
    assert found.se == pytest.approx(np.sqrt(sum(e.se**2 for e in seeds)) / 3)
    assert spread(found.parts) == pytest.approx(found.se, rel=0.01)
    assert combine([seeds[0], replace(seeds[1], parts=())]).parts == ()


def test_combined_seeds_pair_as_each_of_them_does() -> None:
    a, b = (combine([mean_of(x, 0), mean_of(x[::-1] ** 2, 1)]) for x in (X, Y))
    apart = [difference(mean_of(X), mean_of(Y)), difference(mean_of(X[::-1] ** 2, 1), mean_of(Y[::-1] ** 2, 1))]
    found = difference(a, b)
    assert (found.paired, found.dof) == (True, 298)
    assert found.se == pytest.approx(math.hypot(*(d.se for d in apart)) / 2, rel=0.02)


def test_agreement_of_seeds_is_uniform_when_their_errors_are_right_and_small_when_they_are_not() -> None:
    rng = np.random.default_rng(0)

    def p(true: float) -> list[float]:
        return [agreement([Estimate(v, 1.0, 9) for v in rng.normal(scale=true, size=4)]) for _ in range(400)]

    assert stats.kstest(p(1.0), "uniform").pvalue > 0.01
    assert np.mean(np.array(p(3.0)) < 0.05) > 0.8
    two = agreement([Estimate(0.0, 3.0, 9), Estimate(10.0, 4.0, 9)])
    assert two == pytest.approx(2 * stats.norm.sf(2))
    assert agreement([Estimate(1.0, 1.0, 9)]) == 1


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def step_down(p: Sequence[float], level: float) -> set[int]:
    """Holm's procedure as he states it: reject the smallest while it is at most level over those left."""
    rejected: set[int] = set()
    for i in sorted(range(len(p)), key=lambda i: p[i]):
        if p[i] * (len(p) - len(rejected)) > level:
            break
        rejected.add(i)
    return rejected


@given(st.lists(st.floats(0, 1), max_size=12), st.floats(0.001, 0.5))
def test_adjusted_values_reject_what_the_step_down_procedure_rejects(p: list[float], level: float) -> None:
    assert {i for i, q in enumerate(holm(p)) if q <= level} == step_down(p, level)


def test_samples_to_separate_are_the_textbooks() -> None:
    n = 20
    d = Difference(0.5, 1 / n**0.5, math.inf, True)  # half a standard deviation
    estimate, lowest, highest = ours.samples_to_separate(d, n)
    assert estimate == pytest.approx((1.959964 + 0.841621) ** 2 / 0.25, rel=1e-5)
    assert lowest < estimate < highest
    assert ours.samples_to_separate(replace(d, value=0.4), n)[2] == math.inf
    assert ours.samples_to_separate(replace(d, value=0.0), n)[0] == math.inf


def test_so_many_samples_give_the_power_that_was_asked_for() -> None:
    rng = np.random.default_rng(0)
    pilot = difference(mean_of(rng.normal(0.1, 1, size=200)), mean_of(np.zeros(200)))
    n = round(ours.samples_to_separate(replace(pilot, value=0.1, se=200**-0.5), 200)[0])
    seen = [abs(x.mean()) > 1.96 * x.std() / n**0.5 for x in rng.normal(0.1, 1, size=(600, n))]
    assert np.mean(seen) == pytest.approx(0.8, abs=0.05)
