"""The network of photographs on a GPU: trained, captured, in every precision, within its memory."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bench.cell import Sampler
from bench.cells import Subjects, cells
from bench.checkpoints import Checkpoint, load
from bench.checkpoints.cifar10 import training
from bench.checkpoints.cifar10.data import WHERE, photographs
from bench.spec import Sweep
from bench.training import Order, run
from tests.bench.photographs import write_photographs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
GPU = torch.device("cuda")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A teacher of full size, trained for some steps in bf16, compiled."""
    made = tmp_path_factory.mktemp("photographs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(WHERE, str(write_photographs(made / "photographs.parquet")))
        photographs.cache_clear()
        run(Order("cifar10_jpeg", made / "teacher", steps=60, batch=32, precision="bf16", device="cuda"))
        yield made / "teacher"
        photographs.cache_clear()


def sampled(folder: Path, solver: str = "dpmpp_2m", nfe: int = 6, count: int = 8, **mode: str) -> torch.Tensor:
    checkpoint: Checkpoint = load(str(folder))
    sweep = Sweep(
        checkpoint=str(folder), solvers=(solver,), nfe=(nfe,), samples=count, metrics=("frechet_pixels",), **mode
    )
    (cell,), _ = cells(sweep, Subjects(checkpoint))
    sampler = Sampler(cell, checkpoint, GPU)
    return sampler.draw(0, *sampler.inputs(0, count)).double().cpu()


def test_a_training_learns_and_says_on_what(folder: Path) -> None:
    card = json.loads((folder / "card.json").read_text())
    losses = [loss for _, loss in card["curve"]]
    assert sum(losses[-10:]) < sum(losses[:10])
    assert card["made_with"]["device"] == torch.cuda.get_device_name(GPU)
    assert card["parameters"] == sum(p.numel() for p in training.denoiser().parameters())


@pytest.mark.parametrize("backend", ["compile", "cuda_graph"])
@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m_sde", "unipc"])
def test_backends_sample_what_eager_does(folder: Path, solver: str, backend: str) -> None:
    eager, other = sampled(folder, solver), sampled(folder, solver, backend=backend)
    assert float((eager - other).norm() / eager.norm()) < 1e-4


def test_precisions_err_in_their_order(folder: Path) -> None:
    exact = sampled(folder, precision="fp64")
    single, tf32, brain = (
        float((sampled(folder, precision=precision) - exact).norm() / exact.norm())
        for precision in ("fp32", "tf32", "bf16")
    )
    assert single < 1e-4
    assert single < tf32 < brain < 0.2


def test_memory_does_not_grow_with_the_number_of_calls(folder: Path) -> None:
    peaks = []
    for nfe in (5, 5, 20):  # the first warms up
        torch.cuda.reset_peak_memory_stats(GPU)
        sampled(folder, nfe=nfe, count=64)
        peaks.append(torch.cuda.max_memory_allocated(GPU))
    assert peaks[2] <= 1.05 * peaks[1]


def test_samples_are_the_same_in_any_batch(folder: Path) -> None:
    whole, first = sampled(folder, count=8), sampled(folder, count=3)
    assert float((whole[:3] - first).norm() / first.norm()) < 1e-4
