"""How close sampling comes to its floor, NFE x network time, and how long the default sweep takes: `make bench`.

Figures, not gates: each benchmark prints its ratio; the committed figures stand in results/README.md.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import solvers
from bench.checkpoints import Task, load
from bench.spec import SOLVERS

FEWSTEP = str(Path(sys.executable).parent / "fewstep")
BATCH, ROUNDS, NFE = 500, 15, 9


@pytest.mark.parametrize("name", SOLVERS)
def test_sampling_against_the_network_alone(benchmark: BenchmarkFixture, name: str) -> None:
    torch.set_num_threads(2)
    checkpoint = load("digits")
    plan = solvers.plan(name, checkpoint.schedule, NFE)
    z = [torch.randn(BATCH, *checkpoint.shape) for _ in range(plan.draws)]
    denoiser = checkpoint.denoiser(Task(), torch.device("cpu"), torch.float32)
    x_T = checkpoint.latents(0, 0, BATCH, plan.times[0]).float()
    cond = {"y": checkpoint.labels(0, 0, BATCH)}
    ratios = []

    @torch.no_grad()
    def network() -> float:
        begin = time.perf_counter()
        for _ in range(plan.nfe):
            denoiser(x_T, plan.times[0], None, cond)
        return time.perf_counter() - begin

    def sample() -> None:
        begin = time.perf_counter()
        solvers.sample(plan, denoiser, x_T, z.__getitem__, cond=cond)
        total = time.perf_counter() - begin
        ratios.append(total / network())  # interleaved, so that drift hits both

    benchmark.pedantic(sample, rounds=ROUNDS, warmup_rounds=2)
    benchmark.extra_info["sampling / (NFE x network)"] = round(statistics.median(ratios), 4)
    print(f"\n{name}: sampling / (NFE x network) = {statistics.median(ratios):.3f}")


def test_default_sweep(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    command = [FEWSTEP, "sweep", "--out", str(tmp_path / "run")]
    benchmark.pedantic(lambda: subprocess.run(command, check=True, capture_output=True), rounds=1)
    print(f"\ndefault sweep: {benchmark.stats.stats.mean:.1f} s")


def test_help(benchmark: BenchmarkFixture) -> None:
    benchmark.pedantic(lambda: subprocess.run([FEWSTEP, "--help"], check=True, capture_output=True), rounds=5)
