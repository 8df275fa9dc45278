"""A sweep of a baseline as it is now."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from bench import cell as cells
from bench.gate.baseline import Past
from bench.gate.facts import expected, plan_of, program
from bench.gate.plain import Plain
from bench.gate.speed import Session, Trial, session
from bench.mode import Mode
from bench.runner import prepare
from bench.spec import Cell, Sweep
from bench.worker import Networks
from solvers import noise

FEW = 2  # samples whose trajectories are compared number by number
EXACT = 1e-9  # of their size: rounding in float64, which networks amplify, is far below


def label_of(cell: Cell) -> str:
    """What a cell is called within its sweep, whatever its plan's numbers."""
    return f"{cell.series} nfe={cell.nfe or 'adaptive'}" + (f" seed={cell.seed}" if cell.seed else "")


def definition(sweep: Sweep) -> dict[str, Any]:
    """What a baseline keeps of a sweep: what was said in it, but for what the gate does in its own way."""
    said = sweep.model_dump(mode="json", exclude_defaults=True, exclude={"latency", "quality"})
    return {"checkpoint": sweep.checkpoint} | said


def use_threads(threads: int) -> None:
    """Have torch and the linear algebra of numpy and scipy run on so many, which they otherwise decide apart."""
    torch.set_num_threads(threads)
    threadpool_limits(threads)


class Counted:
    """A network that counts its own runs, beneath whatever else counts."""

    def __init__(self, network: Callable[..., Tensor]) -> None:
        self.network, self.runs = network, 0

    def __call__(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        self.runs += 1
        return self.network(x, t, **cond)


class Measured:
    """Each cell's plan, numbers and speed, computed when asked for; raises UsageError as `prepare` does."""

    def __init__(self, sweep: Sweep, device: str, threads: int, scratch: Path) -> None:
        self.sweep, self.threads = sweep, threads
        self.job = prepare(sweep, scratch, device)
        self.cells = {label_of(cell): cell for cell in self.job.cells}
        self.networks = Networks(self.job.subjects, self.job.device)

    def planned(self, label: str) -> Past:
        """A cell before anything is sampled."""
        cell = self.cells[label]
        return Past(digest=cell.digest, nfe=cell.nfe, counted_nfe=0, forwards=0, plan=program(cell.plan), values={})

    def sampled(self, label: str) -> Past:
        """The cell with its numbers; raises whatever sampling does."""
        cell, job = self.cells[label], self.job
        metrics, subject = job.metrics[cell.seed, cell.task], job.subjects.of(cell)
        record, _ = cells.run(cell, subject, metrics, job.device, job.batch, network=self.networks.of(cell))
        values = {value["metric"]: expected(value) for value in record["metrics"]}
        found = {"counted_nfe": record["counted_nfe"], "forwards": record["forwards_per_sample"], "values": values}
        return self.planned(label).model_copy(update=found)

    def session(self, programs: Mapping[str, Mapping[str, Any]]) -> dict[str, Session]:
        """One session of the cells with these labels, against programs as a baseline keeps them."""
        timed = [self.cells[label] for label in programs]
        plans = {self.cells[label].key: plan_of(kept) for label, kept in programs.items()}
        found = session(self.sweep.checkpoint, timed, plans, self.job.device, self.threads)
        return {label: found[self.cells[label].key] for label in programs}

    def trajectory(self, label: str) -> Callable[[], object]:
        """The cell's trajectory, ready to run."""
        cell = self.cells[label]
        subject = self.job.subjects.of(cell)
        return Trial(cells.Sampler(cell, subject, self.job.device, self.networks.of(cell)), cell.plan).ours

    def execution_fault(self, label: str, recorded: Mapping[str, Any]) -> str:
        """How a trajectory differs, in float64, from a plain loop over a recorded program; "" when it does not."""
        cell = replace(self.cells[label], mode=Mode("fp64"))
        subject = self.job.subjects.of(cell)
        network = Counted(cell.mode.ready(subject.network, self.job.device))
        sampler = cells.Sampler(cell, subject, self.job.device, network)
        x_T, cond = sampler.inputs(0, FEW)
        ours, runs = sampler.draw(0, x_T, cond), network.runs
        plain = Plain(plan_of(recorded), network, sampler.denoiser)
        theirs = plain(x_T, lambda k: _draw(cell, k, x_T), cond)
        if runs != network.runs - runs:
            return f"the network ran {runs} times, in a plain loop over the same plan {network.runs - runs} times"
        apart, size = (float(x.abs().max()) for x in (ours - theirs, theirs))
        where = f"samples differ by {apart / size:.2g} of their size from a plain loop over the same plan, in float64"
        return "" if apart <= EXACT * size else where


def _draw(cell: Cell, k: int, like: Tensor) -> Tensor:
    z = noise.normal(cell.seed, noise.STEP + k, 0, len(like), like.shape[1:])
    return torch.from_numpy(z).to(like)
