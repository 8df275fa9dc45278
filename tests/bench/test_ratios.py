"""What tuning buys: ratios of errors that share their noise, their standard errors, and what they are ratios to."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.report.leaderboard import brief
from bench.report.tuned import ratios
from bench.stats import parts_of

RNG = np.random.default_rng(0)
BASE = RNG.gamma(2.0, size=400)


def record(solver: str, squares: NDArray[np.float64], base: str | None = None, nfe: int = 5) -> dict[str, Any]:
    rmse = float(np.sqrt(squares.mean()))
    value = {"metric": "trajectory_rmse", "value": rmse, "parts": parts_of((squares - rmse**2) / (2 * rmse))}
    return {
        "cell": {"solver": solver, "nfe": nfe, "seed": 0, "learned_from": {"base": base} if base else None},
        "metrics": [value],
    }


def test_half_the_error_on_every_sample_is_half_without_a_doubt() -> None:
    (row,) = ratios([record("ddim", BASE), record("tuned", BASE / 4, "ddim")]).to_dict("records")
    assert (row["solver"], row["nfe"], row["base"]) == ("tuned", 5, "ddim")
    assert row["ratio"] == pytest.approx(0.5)
    assert row["se"] == pytest.approx(0, abs=1e-6)  # the parts are kept with five digits


def test_the_standard_error_is_that_of_resampling_the_pairs() -> None:
    tuned = BASE * RNG.gamma(3.0, 0.1, size=len(BASE))
    (row,) = ratios([record("ddim", BASE), record("tuned", tuned, "ddim")]).to_dict("records")
    picks = RNG.integers(len(BASE), size=(4000, len(BASE)))
    again = np.sqrt(tuned[picks].mean(1) / BASE[picks].mean(1))
    assert row["ratio"] == pytest.approx(np.sqrt(tuned.mean() / BASE.mean()))
    assert row["se"] == pytest.approx(again.std(), rel=0.1)


@pytest.mark.parametrize(
    ("base", "named", "ratio"),
    [
        ("unipc( order = 2 )", "unipc( order = 2 )", 0.5),  # however it is spaced
        ("none", "the best untuned", 1.0),
        ("lms", "the best untuned", 1.0),  # which was not run
    ],
)
def test_without_its_base_it_is_compared_with_the_best_untuned_of_the_budget(
    base: str, named: str, ratio: float
) -> None:
    others = [
        record("unipc(order=2)", 4 * BASE),
        record("ddim", BASE),
        record("better, but tuned", BASE / 9, "none"),
        record("better, at another budget", BASE / 9, nfe=6),
    ]
    rows = ratios([*others, record("tuned", BASE, base)]).to_dict("records")
    (row,) = [row for row in rows if row["solver"] == "tuned"]
    assert (row["base"], row["ratio"]) == (named, pytest.approx(ratio))


def test_without_anything_untuned_there_is_nothing_to_say() -> None:
    assert ratios([record("tuned", BASE, "ddim")]).empty
    assert ratios([record("ddim", BASE)]).empty


@pytest.mark.parametrize(
    ("calls", "text"), [(0, "0"), (850, "850"), (4450, "4.45k"), (698_880, "699k"), (1_397_760, "1.4M"), (2e9, "2G")]
)
def test_costs_are_brief(calls: float, text: str) -> None:
    assert brief(calls) == text
