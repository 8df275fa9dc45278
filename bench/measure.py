"""Latency and memory of a cell, in a process of its own.

Protocol: inputs made beforehand, warm-up, then rounds; each round times a whole trajectory and, right after it, as many
bare network calls on the same inputs, so that drift hits both.  What remains, total - NFE x network, is the solver's
overhead.  On a CPU the process is forked afresh for each cell, so that its peak resident set is the cell's own.
"""

import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch

from bench.cell import Sampler
from bench.checkpoints import load
from bench.forkserver import start_server
from bench.spec import Cell

BATCHES = (1, 256)
WARM_UP, ROUNDS = 0.1, 5  # seconds, at least one trajectory; rounds that count


def measure_apart(name: str, cell: Cell, device: torch.device) -> dict[str, Any]:
    """`measure` in a new process, forked from a server that has imported torch but run nothing on it.

    A GPU is measured in this process, whose context it already has.
    """
    threads = torch.get_num_threads()
    if device.type == "cuda":
        return measure(name, cell, device, threads)
    with ProcessPoolExecutor(1, mp_context=start_server()) as pool:
        return pool.submit(measure, name, cell, device, threads).result()


def measure(name: str, cell: Cell, device: torch.device, threads: int) -> dict[str, Any]:
    """Latency at batch 1 and a large batch, and the peak memory of it all, whole and above the weights'."""
    torch.set_num_threads(threads)
    sampler = Sampler(cell, load(name), device)
    before = _peak_bytes(device, reset=True)
    latency = [_latency(sampler, cell, batch) for batch in BATCHES]
    peak = _peak_bytes(device)
    memory = {"peak_mib": peak / 2**20, "above_weights_mib": (peak - before) / 2**20, "batch": BATCHES[-1]}
    return {"latency": latency, "memory": memory | {"of": "CUDA" if device.type == "cuda" else "peak resident set"}}


def _latency(sampler: Sampler, cell: Cell, batch: int) -> dict[str, Any]:
    x_T, cond = sampler.inputs(0, batch)

    def trajectory() -> None:
        sampler.draw(0, x_T, cond)

    before = sampler.denoiser.evaluated
    trajectory()
    made = round((sampler.denoiser.evaluated - before) / batch)  # the budget, unless the steps adapt
    times = getattr(cell.plan, "call_times", cell.plan.times[:1] * made)

    @torch.no_grad()
    def calls() -> None:
        for t in times:  # guidance may act at some of them only
            sampler.denoiser(x_T, t, None, cond)

    begin, warmed = time.perf_counter(), 0.0
    while warmed < WARM_UP:  # thread pools, caches and clocks settle in time, not in calls
        _timed(trajectory, sampler)
        warmed = time.perf_counter() - begin
    rounds = [(_timed(trajectory, sampler), _timed(calls, sampler)) for _ in range(ROUNDS)]
    total = [a for a, _ in rounds]
    low, high = np.quantile(total, [0.25, 0.75])
    return {
        "batch": batch,
        "rounds": ROUNDS,
        "median_ms": statistics.median(total),
        "iqr_ms": float(high - low),
        "p90_ms": float(np.quantile(total, 0.9)),
        "network_ms": statistics.median(b for _, b in rounds),
        "overhead_ms": statistics.median(a - b for a, b in rounds),
    }


def _timed(work: Callable[[], None], sampler: Sampler) -> float:
    """Milliseconds, with the device's queue empty at both ends."""
    _synchronise(sampler.device)
    begin = time.perf_counter()
    work()
    _synchronise(sampler.device)
    return (time.perf_counter() - begin) * 1e3


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_bytes(device: torch.device, reset: bool = False) -> int:
    """The most memory held so far; a GPU's count can start afresh, a process's cannot."""
    if device.type != "cuda":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if reset:
        torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.max_memory_allocated(device)
