"""One cell: sample, take features, compute numbers; a pure function of the cell, but for the clock."""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import solvers
from bench.causes import ran_out_of_memory
from bench.checkpoints import Checkpoint
from bench.environment import environment
from bench.metrics import Chunk, Extractor, Metric
from bench.spec import Cell
from bench.store import Record
from solvers import noise
from solvers.graphs import CudaGraph
from solvers.plan import Noise

IMAGES_KEPT = 32
OnChunk = Callable[[Chunk], None]


class CountError(RuntimeError):
    """A cell whose network was not called as often as its plan says."""


class Sampler:
    """Draws chunks of a cell's samples; sample i is the same in any chunk.

    `network` is one made ready before for another cell of the same mode, to share.
    """

    def __init__(
        self, cell: Cell, checkpoint: Checkpoint, device: torch.device, network: Callable[..., Tensor] | None = None
    ) -> None:
        self.cell = cell
        self.checkpoint = checkpoint
        self.device = device
        self.network = network or cell.mode.ready(checkpoint.network, device)
        self.denoiser = checkpoint.denoiser(cell.task, device, cell.mode.states, cell.plan.times, self.network)
        self._graph: CudaGraph | None = None

    def inputs(self, start: int, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        """x_T and conditions of samples start .. start + count - 1."""
        c, cell = self.checkpoint, self.cell
        x_T = c.latents(cell.seed, start, count, cell.plan.times[0]).to(self.device, cell.mode.states)
        return cell.mode.place(x_T), c.conditions(cell.task, cell.seed, start, count, self.device)

    def solve(self, denoiser: solvers.Denoiser, x_T: Tensor, draws: Noise, cond: dict[str, Tensor]) -> Tensor:
        """The plan run on x_T; a CUDA graph, made for the first batch of a size, replays instead of calling."""
        if self.cell.mode.backend != "cuda_graph":
            return solvers.sample(self.cell.plan, denoiser, x_T, draws, cond=cond)
        assert isinstance(self.cell.plan, solvers.Plan)
        if self._graph is None or self._graph.x_T.shape != x_T.shape:
            self._graph = CudaGraph(self.cell.plan, self.denoiser, x_T, cond)
        return self._graph(x_T, draws, cond)

    def draw(self, start: int, x_T: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """The samples of these inputs; raises CountError, or FloatingPointError when one is not finite."""
        before = self.denoiser.calls

        def draws(k: int) -> Tensor:
            z = noise.normal(self.cell.seed, noise.STEP + k, start, len(x_T), self.checkpoint.shape)
            return self.cell.mode.place(torch.from_numpy(z).to(x_T))

        x = self.solve(self.denoiser, x_T, draws, cond)
        calls = self.denoiser.calls - before
        if self.cell.plan.nfe not in (calls, None):
            raise CountError(f"the network was called {calls} times, the plan says {self.cell.plan.nfe}")
        if not torch.isfinite(x).all():
            bad = int((~torch.isfinite(x)).flatten(1).any(1).sum())
            raise FloatingPointError(f"{bad} of {len(x)} samples are not finite")
        return x


def run(
    cell: Cell,
    checkpoint: Checkpoint,
    metrics: dict[str, Metric],
    device: torch.device,
    batch: int,
    on_chunk: OnChunk = lambda chunk: None,
    network: Callable[..., Tensor] | None = None,
) -> tuple[Record, dict[str, NDArray[Any]]]:
    """The cell's record and its arrays; `on_chunk` sees every chunk of samples, `network` is as a Sampler's."""
    sampler = Sampler(cell, checkpoint, device, network)
    off_ode = cell.plan.draws or cell.task.guide.plus_plus or cell.student
    metrics = {name: m for name, m in metrics.items() if not (m.of_ode and off_ode)}
    arrays, seconds, batch = _sample(sampler, metrics, batch, on_chunk)
    values = [v.to_dict() for m in metrics.values() for v in m.evaluate(arrays[m.features], cell.plan.times)]
    record = {
        "key": cell.key,
        "cell": cell.to_dict(),
        "metrics": values,
        "counted_nfe": _each(sampler.denoiser.evaluated, cell.samples),
        "forwards_per_sample": _each(sampler.denoiser.passed, cell.samples),
        "sampling": {"seconds": seconds, "batch": batch},
        "environment": environment(device),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return record, arrays


def _sample(
    sampler: Sampler, metrics: dict[str, Metric], batch: int, on_chunk: OnChunk
) -> tuple[dict[str, NDArray[Any]], float, int]:
    """The features that metrics look at, by layer, and the first images; the seconds that samplers took; the batch.

    Where memory does not suffice the batch is halved, which changes no sample.
    """
    extractors = list(dict.fromkeys(m.extractor for m in metrics.values()))  # one pass serves all layers of a network
    parts: dict[str, list[NDArray[Any]]] = {m.features: [] for m in metrics.values()} | {"images": []}
    seconds, start, samples = 0.0, 0, sampler.cell.samples
    while start < samples:
        count, d = min(batch, samples - start), sampler.denoiser
        counted = d.evaluated, d.passed
        try:
            chunk, features, took = _chunk(sampler, extractors, start, count)
        except Exception as error:
            if count == 1 or not ran_out_of_memory(error):
                raise
            batch = count // 2
            d.evaluated, d.passed = counted  # by what was thrown away
            continue
        for layer in features.keys() & parts.keys():
            parts[layer].append(features[layer])
        if chunk.images is not None:
            parts["images"].append(chunk.images[: max(0, IMAGES_KEPT - start)])
        on_chunk(chunk)
        seconds, start = seconds + took, start + count
    return {name: np.concatenate(part) for name, part in parts.items() if part}, seconds, batch


def _chunk(
    sampler: Sampler, extractors: Sequence[Extractor], start: int, count: int
) -> tuple[Chunk, dict[str, NDArray[Any]], float]:
    """Samples start .. start + count - 1, their features by layer, and the seconds that the sampler took."""
    x_T, cond = sampler.inputs(start, count)
    begin = time.perf_counter()
    x = sampler.draw(start, x_T, cond)
    seconds = time.perf_counter() - begin
    chunk = Chunk.of(start, x, sampler.checkpoint)
    features: dict[str, NDArray[Any]] = {}
    for extractor in extractors:
        features |= extractor.extract(chunk)
    return chunk, features, seconds


def _each(count: int, samples: int) -> int | float:
    """The count a sample: whole for a plan, a mean where steps adapt to the sample."""
    return count // samples if count % samples == 0 else count / samples
