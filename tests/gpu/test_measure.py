"""Measuring on a GPU: events around every call, memory allocated and reserved; skipped where there is no GPU."""

from pathlib import Path
from typing import Any

import pytest
import torch

from bench.measure.clock import between, mark, timed
from bench.runner import prepare
from bench.spec import Sweep

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def test_events_time_the_device_and_not_its_queue() -> None:
    device = torch.device("cuda")
    x = torch.randn(4096, 4096, device=device)

    def work() -> None:
        for _ in range(20):
            x @ x

    timed(work, device)
    begin = mark(device)
    total, _ = timed(work, device)
    end = mark(device)
    torch.cuda.synchronize()
    assert 0.5 * total < between(begin, end) < 2 * total


def test_a_sweeps_cells_are_measured(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"checkpoint": "gmm", "solvers": ("ddim", "dpmpp_2m_sde"), "nfe": (5,), "samples": 50}
    job = prepare(Sweep(**fields, metrics=("frechet_exact",), latency={"seconds": 0.1}), tmp_path / "run", "cuda")
    job.open()
    assert job.run("a test", lambda cell, samples: None) == []
    assert job.measure(lambda text: None) == []
    found = job.store.measurements()
    assert found.keys() == {cell.key for cell in job.cells}
    for one in found.values():
        memory, session = one["memory"], one["session"]
        assert memory["of"] == "a GPU's allocations"
        assert 0 < memory["above_weights_mib"] <= memory["peak_mib"] <= memory["reserved_peak_mib"]
        assert memory["reserved_above_weights_mib"] >= 0
        assert session["machine"].keys() >= {"device", "threads"}
        for batch in one["latency"]:
            assert len(batch["calls_ms"]) == len(batch["steps_ms"]) == 5
            assert 0 < sum(batch["calls_ms"]) <= 1.1 * sum(batch["steps_ms"])
            assert sum(batch["steps_ms"]) < 1.2 * batch["p90_ms"]
