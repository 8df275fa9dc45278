"""Cells of some classes alone, for methods that learned from the others."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.cell import Sampler, run
from bench.cells import Subjects, cells
from bench.checkpoints import load
from bench.errors import UsageError
from bench.spec import Cell, Sweep
from bench.stats import spread
from bench.store import Store
from tests.bench.common import make_metrics

GMM = load("gmm")
CPU = torch.device("cpu")


def cell(**fields: Any) -> Cell:
    sweep = Sweep(**({"checkpoint": "gmm", "solvers": ("ddim",), "nfe": (6,), "samples": 40} | fields))
    return cells(sweep, Subjects(GMM))[0][0]


def test_classes_are_drawn_with_their_own_shares_of_these() -> None:
    share = np.bincount(GMM.labels(0, 0, 20_000, (0, 2)).numpy(), minlength=3) / 20_000
    wanted = np.array([GMM.classes[0], 0, GMM.classes[2]])
    np.testing.assert_allclose(share, wanted / wanted.sum(), atol=0.01)
    assert GMM.labels(0, 3, 5, (0, 2)).tolist() == GMM.labels(0, 0, 8, (0, 2))[3:].tolist()


def test_all_classes_draw_as_if_none_were_named() -> None:
    assert torch.equal(GMM.labels(0, 0, 500), GMM.labels(0, 0, 500, (0, 1, 2)))


def test_they_are_part_of_the_key_in_any_order() -> None:
    assert cell(classes=(0, 2), metrics=("trajectory",)).key == cell(classes=(2, 0), metrics=("trajectory",)).key
    assert len({cell(classes=c, metrics=("trajectory",)).key for c in (None, (0,), (0, 1))}) == 3


def test_what_compares_with_all_classes_is_refused_and_not_taken_by_default() -> None:
    assert cell(classes=(1,)).metrics == ("trajectory",)
    with pytest.raises(UsageError, match="classes: frechet_exact compares with all of them"):
        cell(classes=(1,), metrics=("frechet_exact",))


@pytest.mark.parametrize("classes", [(3,), (0, 7)])
def test_classes_that_are_none_are_refused(classes: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=rf"{classes[-1]} is no class of gmm, which has 0 to 2"):
        cell(classes=classes)


def test_samples_and_their_exact_solutions_are_of_these_classes(tmp_path: Path) -> None:
    one = cell(classes=(1,), nfe=(60,), solvers=("dpmpp_3m(exact=true)",), precision="fp64")
    assert set(Sampler(one, GMM, CPU).inputs(0, 40)[1]["y"].tolist()) == {1}
    record, _ = run(one, GMM, make_metrics(one, GMM, Store(tmp_path), CPU), CPU, 40)
    errors = {value["metric"]: value["value"] for value in record["metrics"]}
    assert errors["trajectory_rmse"] < 1e-3  # against a solution of other classes it would be 0.5
    assert record["cell"]["classes"] == (1,)


def test_each_samples_part_gives_the_standard_error_back(tmp_path: Path) -> None:
    one = cell(metrics=("trajectory",))
    record, _ = run(one, GMM, make_metrics(one, GMM, Store(tmp_path), CPU), CPU, 40)
    value = next(v for v in record["metrics"] if v["metric"] == "trajectory_rmse")
    assert len(value["parts"]) == value["n"] == 40
    assert spread(value["parts"]) == pytest.approx(value["se"], rel=1e-3)
