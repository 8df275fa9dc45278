"""Precisions and backends on a GPU; skipped where there is none."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import solvers
from bench.cell import Sampler
from bench.cells import Subjects, cells
from bench.checkpoints import Checkpoint, load
from bench.runner import prepare
from bench.spec import Sweep

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


class Conv(nn.Module):
    """Wide enough for tf32 to show."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 256, 3, padding=1), nn.SiLU(), nn.Conv2d(256, 3, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layers(x.to(next(self.parameters()).dtype)).to(x.dtype)


def sampled(solver: str = "ddim", **mode: str) -> Tensor:
    torch.manual_seed(0)
    network = Conv().requires_grad_(False)
    checkpoint = Checkpoint("conv", "0" * 64, network, solvers.VPLinear(), "noise", (3, 32, 32))
    sweep = Sweep(solvers=(solver,), nfe=(6,), samples=8, metrics=("frechet_pixels",), **mode)
    (cell,), _ = cells(sweep, Subjects(checkpoint))
    sampler = Sampler(cell, checkpoint, torch.device("cuda"))
    return sampler.draw(0, *sampler.inputs(0, 8)).double().cpu()


def off(**mode: str) -> float:
    exact = sampled(precision="fp64")
    return float((sampled(**mode) - exact).norm() / exact.norm())


def test_precisions_err_in_their_order() -> None:
    single, tf32, half, brain = (off(precision=precision) for precision in ("fp32", "tf32", "fp16", "bf16"))
    assert single < 1e-5
    assert 10 * single < tf32 < 1e-2
    assert 10 * single < half < 1e-2
    assert tf32 < brain < 0.1


@pytest.mark.parametrize("mode", [{"layout": "channels_last"}, {"backend": "compile"}, {"backend": "cuda_graph"}])
def test_layouts_and_engines_change_the_last_bits_alone(mode: dict[str, str]) -> None:
    assert off(**mode) < 1e-5


def test_a_graph_takes_fresh_noise_at_each_replay() -> None:
    eager, graph = sampled("dpmpp_2m_sde"), sampled("dpmpp_2m_sde", backend="cuda_graph")
    assert float((eager - graph).norm() / eager.norm()) < 1e-5


def test_a_sweep_over_ways_to_run(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"checkpoint": "digits", "solvers": ("ddim",), "nfe": (5,), "samples": 50}
    ways = {"precision": ("fp32", "tf32", "fp16", "bf16"), "backend": ("eager", "compile", "cuda_graph")}
    job = prepare(Sweep(**fields, **ways, metrics=("frechet_digits",), latency={"seconds": 0.1}), tmp_path, "cuda")
    job.open()
    assert job.run("a test") == []
    assert job.measure(lambda text: None) == []
    found = job.store.measurements()
    assert len(found) == 12
    for cell in job.cells:
        laps = found[cell.key]["latency"][0]["calls_ms"]
        assert len(laps) == (0 if cell.mode.backend == "cuda_graph" else 5)
    assert load("digits").digest == job.cells[0].digest
