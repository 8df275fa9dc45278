"""Noise: every number is a pure function of (seed, stream, index), and its law is the one it is named for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from solvers.noise import LABEL, LATENT, STEP, normal, uniform

seeds = st.integers(0, 2**64 - 1)


@given(seeds, st.integers(0, 2**40), st.integers(0, 10**9), st.lists(st.integers(0, 9), min_size=1), st.integers(1, 9))
def test_any_split_into_ranges_gives_the_same_numbers(
    seed: int, stream: int, start: int, counts: list[int], width: int
) -> None:
    whole = uniform(seed, stream, start, sum(counts), width)
    starts = start + np.cumsum([0, *counts[:-1]])
    parts = [uniform(seed, stream, int(s), n, width) for s, n in zip(starts, counts, strict=True)]
    assert whole.shape == (sum(counts), width)
    assert np.concatenate(parts).tobytes() == whole.tobytes()


@given(seeds, st.integers(0, 10**6))
def test_normal_draws_are_pure_and_split_too(seed: int, start: int) -> None:
    whole = normal(seed, LATENT, start, 4, (2, 3))
    assert whole.shape == (4, 2, 3)
    assert [normal(seed, LATENT, start + i, 1, (2, 3))[0].tobytes() for i in range(4)] == [x.tobytes() for x in whole]


@given(seeds, st.integers(0, 2**40), st.integers(0, 10**9), st.integers(1, 999))
def test_another_seed_stream_or_index_is_another_number(seed: int, stream: int, index: int, by: int) -> None:
    others = (seed ^ by, stream, index), (seed, stream + by, index), (seed, stream, index + by)
    numbers = [uniform(*about, 1, 4).tobytes() for about in ((seed, stream, index), *others)]
    assert len(set(numbers)) == 4


def test_streams_of_start_class_and_steps_are_apart() -> None:
    assert len({LATENT, LABEL, *range(STEP, STEP + 100)}) == 102


def test_samples_of_one_seed_are_all_different() -> None:
    for width in (1, 3, 4, 5):
        x = uniform(0, LATENT, 0, 1000, width)
        assert len(np.unique(x)) == x.size


@pytest.mark.parametrize("stream", [LATENT, LABEL, STEP])
def test_uniform_numbers_are_uniform_and_open(stream: int) -> None:
    x = uniform(7, stream, 0, 25_000, 4).ravel()
    assert 0 < x.min() < 1e-4 < 1 - 1e-4 < x.max() < 1
    assert x.mean() == pytest.approx(1 / 2, abs=4 * 12**-0.5 / len(x) ** 0.5)
    assert x.var() == pytest.approx(1 / 12, abs=4 * 180**-0.5 / len(x) ** 0.5)
    assert kstest(x, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("shape", [(1,), (4,), (2, 5)])
def test_normal_numbers_are_normal_and_independent(shape: tuple[int, ...]) -> None:
    x = normal(3, LATENT, 0, 100_000 // int(np.prod(shape)), shape).ravel()
    assert x.mean() == pytest.approx(0, abs=4 / len(x) ** 0.5)
    assert x.var() == pytest.approx(1, abs=4 * 2**0.5 / len(x) ** 0.5)
    assert kstest(x, "norm").pvalue > 1e-3
    for lag in (1, 2, 4, 5):
        assert np.mean(x[lag:] * x[:-lag]) == pytest.approx(0, abs=4 / len(x) ** 0.5)


@pytest.mark.parametrize("seed", [-1, 2**64, 2**70])
def test_seeds_outside_64_bits_are_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=r"seed must be an integer in \[0, 2\^64\), not"):
        normal(seed, LATENT, 0, 1, (1,))


def test_seeds_of_64_bits_are_all_different() -> None:
    seeds = (0, 2**63, 2**63 + 1, 2**63 + 512, 2**64 - 2, 2**64 - 1)
    assert len({uniform(seed, LATENT, 0, 1, 1).item() for seed in seeds}) == len(seeds)


GOLDEN = {  # (seed, stream, index): the first five normal numbers
    (0, 0, 0): [-2.271884148324594, -0.701327920628698, -1.218980191079758, 0.16217155791645022, 0.005964818724655495],
    (0, 0, 1): [-0.662508356998329, -0.8594339402146326, 0.5583869464613468, -1.1204329020110229, 0.18262745192835433],
    (0, 2, 0): [0.8943533855835423, -0.15177853834101032, -0.5252059079547508, 0.2835543873231572, 0.9142201645241876],
    (1, 0, 0): [-0.5141658112314126, 1.0309111217613407, -1.0104712725037313, -1.8647755350163382, 1.283082729337829],
    (2**62 + 1, 1, 10**6): [
        0.9703316364511853,
        1.735685483746298,
        1.3845801947297396,
        -1.0309385990615332,
        0.45381554626594534,
    ],
}


@pytest.mark.parametrize(("about", "expected"), GOLDEN.items(), ids=str)
def test_the_generator_is_the_one_that_results_were_made_with(
    about: tuple[int, int, int], expected: list[float]
) -> None:
    seed, stream, index = about
    assert normal(seed, stream, index, 1, (5,))[0].tolist() == pytest.approx(expected, rel=1e-13)
