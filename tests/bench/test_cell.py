"""One cell: the same numbers in any batch, its calls counted, and no number from a broken network."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import solvers
from bench.cell import CountError, Draws, run
from bench.cells import Subjects, cells
from bench.checkpoints import Checkpoint, load
from bench.spec import Cell, Sweep
from bench.store import Store
from solvers import noise
from tests.bench.common import make_metrics

GMM = load("gmm")
CPU = torch.device("cpu")
N = 64


def cell_of(solver: str = "ddim", nfe: int = 6, **others: Any) -> Cell:
    sweep = Sweep(**({"checkpoint": "gmm", "solvers": (solver,), "nfe": (nfe,), "samples": N} | others))
    return cells(sweep, Subjects(GMM))[0][0]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def run_in(store: Store, cell: Cell, batch: int = N, checkpoint: Checkpoint = GMM) -> tuple[dict[str, Any], Any]:
    return run(cell, checkpoint, make_metrics(cell, checkpoint, store, CPU), CPU, batch)


def states(store: Store, cell: Cell, batch: int) -> np.ndarray:
    return run_in(store, cell, batch)[1]["states"].astype(np.float64)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_noise_is_the_same_by_any_number_of_threads(count: int) -> None:
    about = 5, noise.STEP, 10, count, (2, 3)
    assert Draws(threads=3).normal(*about).tobytes() == noise.normal(*about).tobytes()


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("fp64", 1e-12)])
@pytest.mark.parametrize("solver", ["dpmpp_2m", "ddim(eta=1)"])
def test_samples_do_not_depend_on_the_batch(store: Store, solver: str, precision: str, tolerance: float) -> None:
    cell = cell_of(solver, precision=precision)
    whole = states(store, cell, 64)
    assert whole.shape == (N, 16)
    assert len(np.unique(whole, axis=0)) == N
    for batch in (1, 7):
        np.testing.assert_allclose(states(store, cell, batch), whole, rtol=0, atol=tolerance)


def test_the_first_images_are_kept_whatever_the_batch(store: Store) -> None:
    digits = load("digits")
    sweep = Sweep(solvers=("ddim",), nfe=(5,), samples=40, metrics=("frechet_pixels",))
    (cell,) = cells(sweep, Subjects(digits))[0]
    images, arrays = [], run_in(store, cell, 9, digits)[1]
    run(cell, digits, {}, CPU, 40, lambda chunk: images.append(chunk.images))
    np.testing.assert_array_equal(arrays["images"], images[0][:32])


def test_guided_samples_do_not_depend_on_the_batch(store: Store) -> None:
    cell = cell_of(guidance=2.0, precision="fp64")
    np.testing.assert_allclose(states(store, cell, 7), states(store, cell, 64), rtol=0, atol=1e-12)


def test_metrics_do_not_depend_on_the_batch(store: Store) -> None:
    whole, parts = (run_in(store, cell_of(precision="fp64"), batch)[0]["metrics"] for batch in (64, 7))
    assert [v["metric"] for v in whole] == ["frechet_exact", "trajectory_rmse", "trajectory_p95"]
    for a, b in zip(whole, parts, strict=True):
        assert (a["value"], a["se"]) == pytest.approx((b["value"], b["se"]), rel=1e-9)
        assert (a["n"], a["family"]) == (b["n"], b["family"])


def test_single_precision_is_double_precision_but_for_rounding(store: Store) -> None:
    single, double = (states(store, cell_of(precision=precision), 64) for precision in ("fp32", "fp64"))
    assert 1e-9 < abs(single - double).max() < 1e-4


def test_seeds_and_solvers_give_other_samples(store: Store) -> None:
    found = [states(store, cell, 64) for cell in (cell_of(), cell_of(seed=1), cell_of("dpmpp_2m"))]
    assert abs(found[0] - found[1]).max() > 0.1
    assert abs(found[0] - found[2]).max() > 0.01


def test_a_run_leaves_the_global_generator_alone(store: Store) -> None:
    before = torch.get_rng_state()
    run_in(store, cell_of("ddim(eta=1)"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("solver", "nfe", "guidance", "forwards"),
    [("ddim", 6, 1.0, 6), ("heun", 7, 1.0, 7), ("dpmpp_2m(denoise_to_zero=true)", 6, 1.0, 6), ("ddim", 6, 2.0, 12)],
)
def test_calls_are_counted(store: Store, solver: str, nfe: int, guidance: float, forwards: int) -> None:
    record, _ = run_in(store, cell_of(solver, nfe, guidance=guidance), batch=20)
    assert record["counted_nfe"] == record["cell"]["nfe"] == nfe
    assert record["forwards_per_sample"] == forwards


class Broken(nn.Module):
    """The mixture, but for what is done to its outputs."""

    def __init__(self, spoil: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.spoil = GMM.network, spoil

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.spoil(self.network(x, t, y))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_network_that_is_not_finite_fails_the_cell(store: Store, bad: float) -> None:
    def spoil(out: Tensor) -> Tensor:
        return torch.where(torch.arange(len(out)).reshape(-1, 1, 1, 1) < 3, bad, out)

    with pytest.raises(FloatingPointError, match=f"3 of {N} samples"):
        run_in(store, cell_of(), checkpoint=replace(GMM, network=Broken(spoil)))


class OnceTooOften(Checkpoint):
    """A checkpoint whose network calls its own counted denoiser once."""

    def denoiser(self, *args: Any) -> solvers.Denoiser:
        made = super().denoiser(*args)
        inner = made.network

        def network(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
            if made.calls == 1:
                made(x, float(t[0]), None, {"y": y})
            return inner(x, t, y)

        made.network = network
        return made


def test_a_call_too_many_fails_the_cell(store: Store) -> None:
    checkpoint = OnceTooOften(**{f.name: getattr(GMM, f.name) for f in fields(GMM)})
    with pytest.raises(CountError, match="called 7 times, the plan says 6"):
        run_in(store, cell_of(), checkpoint=checkpoint)


def test_a_record_says_what_it_was_measured_on_and_can_be_kept(store: Store) -> None:
    cell = cell_of()
    record, arrays = run_in(store, cell, batch=20)
    assert record["key"] == cell.key
    assert record["environment"].keys() == {"versions", "commit", "device", "threads"}
    assert torch.__version__.startswith(record["environment"]["versions"]["torch"])
    assert record["environment"]["threads"] == torch.get_num_threads()
    assert record["sampling"]["batch"] == 20
    assert record["sampling"]["seconds"] > 0
    store.put(cell.key, record, arrays)
    (kept,) = store.records()
    assert kept["metrics"] == record["metrics"]
    assert store.sidecar(cell.key).keys() == {"states", "first_states"}


def test_progress_hears_of_every_sample(store: Store) -> None:
    heard: list[int] = []
    cell = cell_of()
    run(cell, GMM, make_metrics(cell, GMM, store, CPU), CPU, 20, lambda chunk: heard.append(len(chunk)))
    assert heard == [20, 20, 20, 4]
