"""Whether a solver became slower, between sessions of different machines."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from bench.compare_speed import Timed, speeds, van_elteren


def timed(ratios: np.ndarray, network: float = 4.0, batch: int = 64) -> dict[str, Any]:
    at = {
        "batch": batch, "median_ms": float(np.median(ratios)) * network,
        "rounds": {"total_ms": list(network * ratios), "network_ms": [network] * len(ratios)},
    }  # fmt: skip
    return {"latency": [at | {"batch": 1}, at], "memory": {"above_weights_mib": 20.0}}


def test_a_slower_solver_is_told_from_a_slower_machine() -> None:
    rng = np.random.default_rng(0)

    def measured(slower: float, machine: float) -> list[Timed]:
        draw = lambda factor: factor * (1.1 + 0.02 * rng.normal(size=5))  # noqa: E731
        return [
            Timed("run", name, nfe, timed(draw(1.0)), timed(draw(slower if name == "ours" else 1.0), 4.0 * machine))
            for name in ("ours", "ddim", "heun")
            for nfe in (5, 8, 10)
        ]

    busy = speeds(measured(1.0, 1.5))
    assert all(speed.p > 0.05 and 1.4 < speed.ratio < 1.6 and 0.95 < speed.relative < 1.05 for speed in busy)
    found = speeds(measured(1.3, 1.0))
    told = {(speed.series, speed.at) for speed in found if speed.p < 0.05}
    assert told == {("ours", "batch 1"), ("ours", "best batch")}
    assert found[0].series == "ours"
    assert found[0].relative == pytest.approx(1.3, abs=0.05)


def test_other_batches_are_not_compared() -> None:
    found = speeds([Timed("run", "ddim", 5, timed(np.ones(5)), timed(np.ones(5), batch=32))])
    assert [speed.at for speed in found] == ["batch 1"]


@given(st.lists(st.floats(0.5, 2), min_size=4, max_size=12), st.lists(st.floats(0.5, 2), min_size=4, max_size=12))
def test_one_stratum_is_mann_whitneys(a: list[float], b: list[float]) -> None:
    theirs = reference.mannwhitneyu(a, b, use_continuity=False, method="asymptotic").pvalue
    expected = 1.0 if len(set(a + b)) == 1 else theirs
    assert van_elteren([(np.array(a), np.array(b))]) == pytest.approx(expected, abs=1e-9)


def test_strata_that_shift_all_the_same_way_add_up() -> None:
    rng = np.random.default_rng(1)
    strata = [(base + rng.normal(size=5), base + 0.8 + rng.normal(size=5)) for base in range(0, 100, 10)]
    assert van_elteren(strata) < 0.005 < min(van_elteren([stratum]) for stratum in strata)
    null = [van_elteren([(x[:5], x[5:]) for x in rng.normal(size=(7, 10))]) for _ in range(400)]
    assert np.mean(np.array(null) < 0.05) == pytest.approx(0.05, abs=0.03)
