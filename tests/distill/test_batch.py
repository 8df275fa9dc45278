"""Random numbers of a training are functions of (seed, stream, index): no batch, device or sampler changes them."""

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from distill.batch import LOSS, Batch, Draws
from solvers import noise

COUNT = 4000
DRAWN: dict[str, Callable[[Draws, int], np.ndarray]] = {
    "normal": lambda draws, stream: draws.normal(stream, (2, 3)).numpy(),
    "uniform": lambda draws, stream: draws.uniform(stream),
    "integers": lambda draws, stream: draws.integers(stream, 1000),
}
each_kind = pytest.mark.parametrize("drawn", DRAWN.values(), ids=DRAWN)


@each_kind
@given(
    seed=st.integers(0, 2**64 - 1), step=st.integers(0, 10**6), first=st.integers(0, 10**9),
    parts=st.lists(st.integers(1, 5), min_size=1, max_size=4), turn=st.integers(0, 3), stream=st.integers(0, 40),
)  # fmt: skip
def test_parts_of_a_batch_put_together_are_the_batch(
    drawn: Callable[[Draws, int], np.ndarray],
    seed: int,
    step: int,
    first: int,
    parts: list[int],
    turn: int,
    stream: int,
) -> None:
    whole = drawn(Draws(seed, step, first, sum(parts), turn=turn), LOSS + stream)
    starts = first + np.cumsum([0, *parts[:-1]])
    pieces = [Draws(seed, step, int(at), n, turn=turn) for at, n in zip(starts, parts, strict=True)]
    assert np.array_equal(np.concatenate([drawn(piece, LOSS + stream) for piece in pieces]), whole)


@given(step=st.integers(0, 10**6), first=st.integers(0, 10**9), count=st.integers(1, 9))
def test_what_a_step_shares_depends_on_the_step_alone(step: int, first: int, count: int) -> None:
    shared = Draws(3, step, first, count).shared(LOSS)
    assert 0 < shared < 1
    assert shared == Draws(3, step, 0, 1).shared(LOSS)
    assert shared not in (
        Draws(3, step + 1, first, count).shared(LOSS),
        Draws(3, step, first, count, turn=1).shared(LOSS),
    )
    assert shared not in (Draws(4, step, first, count).shared(LOSS), Draws(3, step, first, count).shared(LOSS + 1))


OTHERS = {
    "itself": (Draws(0, 0, 0, COUNT), LOSS),
    "another seed": (Draws(1, 0, 0, COUNT), LOSS),
    "the next samples": (Draws(0, 1, COUNT, COUNT), LOSS),
    "another turn": (Draws(0, 0, 0, COUNT, turn=1), LOSS),
    "another stream": (Draws(0, 0, 0, COUNT), LOSS + 1),
}


@pytest.mark.parametrize(("one", "other"), list(combinations(OTHERS, 2)))
def test_seeds_samples_turns_and_streams_are_independent(one: str, other: str) -> None:
    a, b = (DRAWN["normal"](*OTHERS[name]).ravel() for name in (one, other))
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / len(a) ** 0.5


def test_draws_have_the_distributions_they_say() -> None:
    draws = Draws(0, 0, 0, COUNT)
    assert stats.kstest(draws.normal(LOSS, (5,)).numpy().ravel(), "norm").pvalue > 1e-3
    assert stats.kstest(draws.uniform(LOSS), "uniform").pvalue > 1e-3
    assert stats.kstest([Draws(0, step, 0, 1).shared(LOSS) for step in range(1000)], "uniform").pvalue > 1e-3
    counts = np.bincount(draws.integers(LOSS, 7), minlength=7)
    assert len(counts) == 7
    assert stats.chisquare(counts).pvalue > 1e-3


@given(stream=st.integers(0, 2**16), turn=st.integers(0, 2**10), sampled=st.integers(0, 2**20))
def test_no_training_meets_the_numbers_of_samplers_or_of_tuning(stream: int, turn: int, sampled: int) -> None:
    """Samplers count their streams up from 0 and tuning from TUNING: trainings are beyond both."""
    seen = Draws(0, 0, 0, 8, turn=turn).uniform(stream)
    for base in (0, noise.TUNING):
        assert not np.isin(seen, noise.uniform(0, base + sampled, 0, 8, 1)).any()
        assert not np.isin(seen, noise.uniform(0, base + stream, 0, 8, 1)).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_like_the_data(dtype: torch.dtype) -> None:
    batch = Batch(torch.zeros(3, 1, 4, 4, dtype=dtype), {}, Draws(0, 0, 5, 3))
    assert (batch.noise(LOSS).shape, batch.noise(LOSS).dtype) == (batch.x0.shape, dtype)
    torch.testing.assert_close(batch.noise(LOSS), batch.draws.normal(LOSS, (1, 4, 4)).to(dtype), rtol=0, atol=0)
