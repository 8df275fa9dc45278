"""Intervals hold what they promise: the committed simulation, run again for one setting, and its extrapolation."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from bench.metrics.gaussian import Gaussian, Moments, distance, frechet, richardson

FOLDER = Path(__file__).parents[2] / "results" / "calibration"


@pytest.fixture(scope="module")
def calibration() -> ModuleType:
    spec = importlib.util.spec_from_file_location("calibration", FOLDER / "run.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", ["Gaussian", "mixture"])
def test_intervals_of_repeated_data_hold_what_they_should(calibration: ModuleType, kind: str) -> None:
    repetitions = 250
    found = calibration.simulate(calibration.Setting(kind, "far", 8, 16), repetitions)
    for name in calibration.COVERAGES:
        assert 0.91 < found[name] < 0.985, name  # three binomial errors around 95 %, which is 1.4 %
        assert found[f"{name}_se_over_sd"] == pytest.approx(1, abs=0.25)
    assert found["split"] < 0.08
    assert found["pairing"] > 3


def test_the_committed_table_is_what_this_code_gives(calibration: ModuleType) -> None:
    setting = calibration.Setting("Gaussian", "equal", 8, 4)
    table = pd.read_csv(FOLDER / "table.csv").set_index(["kind", "case", "d", "ratio"])
    assert set(table.index) == {(s.kind, s.case, s.d, s.ratio) for s in calibration.settings()}
    found, row = calibration.simulate(setting, calibration.REPETITIONS), table.loc[("Gaussian", "equal", 8, 4)]
    for name, value in found.items():
        assert value == pytest.approx(row[name], rel=1e-3, abs=2e-3), name
    committed = calibration.markdown(table.reset_index(), calibration.REPETITIONS)
    assert (FOLDER / "coverage.md").read_text() == committed


def test_no_interval_holds_less_than_it_should(calibration: ModuleType) -> None:
    table = pd.read_csv(FOLDER / "table.csv")
    assert table[list(calibration.COVERAGES)].min().min() >= 0.93
    assert (table["split"] <= 0.05).all()


@pytest.mark.parametrize(("n", "d"), [(400, 6), (60, 6), (21, 6), (12, 40)])
def test_richardson_is_its_formula_over_halves_and_quarters(n: int, d: int) -> None:
    rng = np.random.default_rng(n)
    x, reference = rng.normal(0.2, 1.1, size=(n, d)), Gaussian(np.zeros(d), np.eye(d), {})
    whole, half, quarter = (
        np.mean([distance(Moments.of(x[start::k]), reference) for start in range(k)]) for k in (1, 2, 4)
    )
    found = richardson(x, reference, frechet(x, reference)[0])
    assert found == pytest.approx((2 * whole - half, abs(2 * whole - 3 * half + quarter) / 2), rel=1e-6, abs=1e-9)


def test_fewer_than_eight_samples_are_not_extrapolated() -> None:
    x, reference = np.random.default_rng(0).normal(size=(7, 2)), Gaussian(np.zeros(2), np.eye(2), {})
    assert richardson(x, reference, 1.0) is None
    assert richardson(np.vstack([x, x[:1]]), reference, 1.0) is not None


def test_the_extrapolated_distance_of_distant_gaussians_is_the_true_one() -> None:
    rng, reference = np.random.default_rng(5), Gaussian(np.zeros(16), np.eye(16), {})
    truth = 16 * (0.3**2 + 0.2**2)
    errors = []
    for _ in range(60):
        x = rng.normal(0.3, 1.2, size=(320, 16))
        value = frechet(x, reference)[0]
        extrapolated, left = richardson(x, reference, value) or (np.nan, np.nan)
        errors.append((value - truth, extrapolated - truth, left))
    raw, limit, left = np.mean(errors, axis=0)
    assert raw > 0.3
    assert abs(limit) < 0.05
    assert 0 < left < 0.1
