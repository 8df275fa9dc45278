"""Clocks of a device: synchronised times, and marks around every network call."""

import subprocess
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import solvers
from solvers.model import Cond

Mark = Any  # a CUDA event, or seconds


def timed(work: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Milliseconds on the wall and of this process's CPU time, with the device's queue empty at both ends."""
    synchronise(device)
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    synchronise(device)
    return (time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def mark(device: torch.device) -> Mark:
    """Now, in the order of the device's work."""
    if device.type != "cuda":
        return time.perf_counter()
    event: Mark = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


def between(begin: Mark, end: Mark) -> float:
    """Milliseconds from one mark to another, once the device has passed both."""
    if isinstance(begin, float):
        return float(end - begin) * 1e3
    return float(begin.elapsed_time(end))


class Marked(solvers.Denoiser):
    """A denoiser that keeps a mark before and behind each call, of plans' samplers."""

    def __init__(self, denoiser: solvers.Denoiser, device: torch.device) -> None:
        super().__init__(denoiser.network, denoiser.schedule, denoiser.predicts, denoiser.guidance)
        self.device = device
        self.marks: list[tuple[Mark, Mark]] = []

    def forward(self, x: Tensor, t: float, cond: Cond | None = None) -> Tensor:
        begin = mark(self.device)
        out = super().forward(x, t, cond)
        self.marks.append((begin, mark(self.device)))
        return out


def clocks(device: torch.device) -> list[int] | None:
    """MHz of a GPU's processors and memory; None where nvidia-smi does not say."""
    if device.type != "cuda":
        return None
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    command = ["nvidia-smi", "-i", uuid, "--query-gpu=clocks.sm,clocks.mem", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
        return [int(number) for number in told.split(",")]
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
