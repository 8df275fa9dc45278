"""One trial of a round: a trajectory beside its bare network calls, or work that is timed apart."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.cell import Sampler
from bench.measure.clock import Mark, Marked, between, mark, timed


class Trajectory:
    """A cell at a batch size; `warm` comes first.  A CUDA graph runs no call that could be marked: it has no laps."""

    def __init__(self, sampler: Sampler, x_T: Tensor, cond: dict[str, Tensor]) -> None:
        self.sampler, self.plan, self.device = sampler, sampler.cell.plan, sampler.device
        self.denoiser = Marked(sampler.denoiser, sampler.device)
        self.counted = sampler.denoiser if sampler.cell.mode.backend == "cuda_graph" else self.denoiser
        self.x_T, self.cond = x_T, cond
        self.z = x_T / sampler.checkpoint.schedule.prior_std(self.plan.times[0])
        self.times: tuple[float, ...] = ()
        self.end: Mark = None

    def warm(self) -> None:
        self.trajectory()

    def trajectory(self) -> None:
        self.denoiser.marks.clear()
        before = self.counted.evaluated
        self.sampler.solve(self.denoiser, self.x_T, lambda k: self.z, self.cond)
        self.end = mark(self.device)
        made = round((self.counted.evaluated - before) / len(self.x_T))  # the budget, unless the steps adapt
        self.times = getattr(self.plan, "call_times", self.plan.times[:1] * made)

    def calls(self) -> None:
        """As many network calls as the trajectory made, at its times: guidance may act at some of them only."""
        self.denoiser.marks.clear()
        self._call(self.times)

    @torch.no_grad()
    def _call(self, times: tuple[float, ...]) -> None:
        for t in times:
            self.denoiser(self.x_T, t, None, self.cond)

    def run(self, number: int) -> dict[str, Any]:
        """Milliseconds; which of the two goes first alternates with the round, since the second finds things warm."""
        self._call(self.times[:1])  # the trial before left caches of another batch
        network = timed(self.calls, self.device)[0] if number % 2 else None
        total, cpu = timed(self.trajectory, self.device)
        laps = self._laps()
        if network is None:
            network, _ = timed(self.calls, self.device)
        return {"total_ms": total, "cpu_ms": cpu, "network_ms": network} | laps

    def _laps(self) -> dict[str, list[float]]:
        """Of the last trajectory: each network call, and each step, from the start of its call to that of the next."""
        marks = self.denoiser.marks
        ends = [begin for begin, _ in marks[1:]] + [self.end] * bool(marks)  # a procedure leaves no marks
        calls = [between(begin, end) for begin, end in marks]
        return {"calls_ms": calls, "steps_ms": [between(m[0], end) for m, end in zip(marks, ends, strict=True)]}


class Apart:
    """Work that a checkpoint's samples need beside the network's calls."""

    def __init__(self, work: Callable[[], object], device: torch.device) -> None:
        self.work, self.device = torch.no_grad()(work), device

    def warm(self) -> None:
        self.work()

    def run(self, number: int) -> dict[str, Any]:
        """Milliseconds; the round's number does not matter to it."""
        self.work()
        total, cpu = timed(self.work, self.device)
        return {"total_ms": total, "cpu_ms": cpu}
