"""How much sooner two workers of Ray are done than one: digits, a thread each, start-up apart, rounds interleaved.

Many cells are a sweep's usual work; one large cell is spread in pieces, and its numbers are made by one worker alone.
Trajectory errors are left out: their reference is solved once a sweep.
"""

import time
from pathlib import Path
from statistics import median

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.executors import How
from bench.runner import Job, prepare
from bench.spec import Sweep

ROUNDS = 3
METRICS = ("frechet_digits", "frechet_pixels")
WORK = {
    "many": {"solvers": ("ddim", "dpmpp_2m", "unipc", "ipndm"), "nfe": (8, 10), "samples": 8000},
    "large": {"solvers": ("dpmpp_2m",), "nfe": (10,), "samples": 24_000},
}


def seconds(job: Job, workers: int) -> float:
    job.open()
    job.engine.slots = 1 if workers == 1 else 2 * workers
    begin = time.perf_counter()
    assert job.run("benchmark") == []
    return time.perf_counter() - begin


@pytest.mark.parametrize("name", WORK)
def test_workers(benchmark: BenchmarkFixture, tmp_path: Path, name: str) -> None:
    def job(out: str, samples: int = WORK[name]["samples"]) -> Job:
        sweep = Sweep(checkpoint="digits", latency=None, metrics=METRICS, **WORK[name] | {"samples": samples})
        return prepare(sweep, tmp_path / out, "cpu", how=How(engine="ray", workers=2))

    torch.set_num_threads(1)
    begin = time.perf_counter()
    first = job("first", samples=4000)  # starts both
    seconds(first, 2)
    started = time.perf_counter() - begin
    try:
        rounds = [[seconds(job(f"{i}-{workers}"), workers) for workers in (1, 2)] for i in range(ROUNDS)]
        benchmark.pedantic(seconds, setup=lambda: ((job("last"), 2), {}), rounds=1)
    finally:
        first.close()
    one, two = (median(each) for each in zip(*rounds, strict=True))
    ratio = median(a / b for a, b in rounds)
    benchmark.extra_info.update({"work": name, "one": one, "two": two, "ratio": ratio, "start": started})
    print(f"\n{name}: {one:.2f} s by one worker, {two:.2f} s by two, {ratio:.2f} times; start-up {started:.1f} s")
