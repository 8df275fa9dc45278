"""One cell: sample, take features, compute numbers; a pure function of the cell, but for the clock."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from threading import Lock
from typing import Any

import cachetools
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
from bench.spent import Clock
from bench.store import Record
from solvers import noise
from solvers.graphs import CudaGraph
from solvers.plan import Noise

IMAGES_KEPT = 32
ABOUT, BATCH = "about", 2  # of a block: the name of its counts, and where among them the batch is
Arrays = Mapping[str, NDArray[Any]]
OnChunk = Callable[[Chunk], None]


class CountError(RuntimeError):
    """A cell whose network was not called as often as its plan says."""


class Draws:
    """Normal draws as solvers.noise gives them, by so many threads, kept while they fit: cells of a sweep share most of
    them."""

    def __init__(self, room: int = 2**28, threads: int = 1) -> None:
        kept: cachetools.LRUCache[Any, NDArray[np.float64]] = cachetools.LRUCache(room, getsizeof=lambda z: z.nbytes)
        draw = noise.normal if threads == 1 else partial(_drawn_by, ThreadPoolExecutor(threads), threads)
        self.normal = cachetools.cached(kept, lock=Lock())(draw)

    @classmethod
    def beside(cls, device: torch.device) -> "Draws":
        """Those for work on a device: a GPU would wait for a single core, while on a CPU every worker has its own."""
        return cls(threads=1 if device.type == "cpu" else os.cpu_count() or 1)


def _drawn_by(
    pool: Executor, threads: int, seed: int, stream: int, start: int, count: int, shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """What solvers.noise gives, to the bit: each thread draws some of the samples."""
    edges = [start + count * k // threads for k in range(threads + 1)]
    parts = pool.map(lambda first, end: noise.normal(seed, stream, first, end - first, shape), edges, edges[1:])
    return np.concatenate(list(parts))


class Sampler:
    """Draws chunks of a cell's samples; sample i is the same in any chunk.

    `network` is one made ready before for another cell of the same mode, to share, as `clock` and `draws` may be.
    """

    def __init__(
        self,
        cell: Cell,
        checkpoint: Checkpoint,
        device: torch.device,
        network: Callable[..., Tensor] | None = None,
        clock: Clock | None = None,
        draws: Draws | None = None,
    ) -> None:
        self.cell = cell
        self.checkpoint = checkpoint
        self.device = device
        self.network = network or cell.mode.ready(checkpoint.network, device)
        self.clock = clock or Clock(device)
        self.normal = (draws or Draws()).normal
        self.denoiser = checkpoint.denoiser(cell.task, device, cell.mode.states, cell.plan.times, self.network)
        self._graph: CudaGraph | None = None

    def inputs(self, start: int, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        """x_T and conditions of samples start .. start + count - 1."""
        c, cell = self.checkpoint, self.cell
        x_T = c.latents(cell.seed, start, count, cell.plan.times[0], normal=self.normal).to(
            self.device, cell.mode.states
        )
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
            z = self.normal(self.cell.seed, noise.STEP + k, start, len(x_T), self.checkpoint.shape)
            return self.cell.mode.place(torch.from_numpy(z).to(x_T, copy=True))  # what is kept stays as it is

        x = self.solve(self.denoiser, x_T, draws, cond)
        calls = self.denoiser.calls - before
        if self.cell.plan.nfe not in (calls, None):
            raise CountError(f"the network was called {calls} times, the plan says {self.cell.plan.nfe}")
        if not torch.isfinite(x).all():
            bad = int((~torch.isfinite(x)).flatten(1).any(1).sum())
            raise FloatingPointError(f"{bad} of {len(x)} samples{self._first_bad(x_T, draws, cond)}")
        return x

    def _first_bad(self, x_T: Tensor, draws: Noise, cond: dict[str, Tensor]) -> str:
        """Where it began: the first call of the network whose output is not finite, found by sampling once more."""
        calls: list[tuple[float, bool]] = []

        def looked_at(x: Tensor, t: Tensor, **told: Tensor) -> Tensor:
            out = self.network(x, t, **told)
            calls.append((float(t[0]), bool(torch.isfinite(out).all())))
            return out

        c, cell = self.checkpoint, self.cell
        denoiser = c.denoiser(cell.task, self.device, cell.mode.states, cell.plan.times, looked_at)
        solvers.sample(cell.plan, denoiser, x_T, draws, cond=cond)
        first = next((k for k, (_, finite) in enumerate(calls) if not finite), None)
        if first is None:
            return ", though the network's output is"
        return f", first in network call {first + 1} of {len(calls)}, at t = {calls[first][0]:g}"


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
    sampler, metrics = Sampler(cell, checkpoint, device, network), applicable(cell, metrics)
    blocks = []
    for start, count in blocks_of(cell.samples, batch):
        blocks.append(sample(sampler, metrics, start, count, batch, on_chunk))
        batch = int(blocks[-1][ABOUT][BATCH])
    return finish(cell, metrics, blocks, device, sampler.clock)


def blocks_of(samples: int, batch: int, start: int = 0) -> list[tuple[int, int]]:
    """Blocks of `batch` samples, the first of each and how many: what is computed, and kept, at once."""
    return [(first, min(batch, samples - first)) for first in range(start, samples, batch)]


def applicable(cell: Cell, metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """Those of the metrics that mean something for the cell."""
    off_ode = cell.plan.draws or cell.task.guide.plus_plus or cell.student
    return {name: metric for name, metric in metrics.items() if not (metric.of_ode and off_ode)}


def sample(
    sampler: Sampler, metrics: Mapping[str, Metric], start: int, count: int, batch: int, on_chunk: OnChunk
) -> Arrays:
    """A block: features of its samples by layer, its share of the first images, and `about` (4,): the samples that the
    network evaluated and passed, the batch, and the seconds that the sampler took.

    Where memory does not suffice the batch is halved, which changes samples by rounding alone.
    """
    extractors = list(dict.fromkeys(m.extractor for m in metrics.values()))  # one pass serves all layers of a network
    parts: dict[str, list[NDArray[Any]]] = {m.features: [] for m in metrics.values()} | {"images": []}
    about, end = np.array([0, 0, batch, 0.0]), start + count
    while start < end:
        count = min(batch, end - start)
        try:
            chunk, features, added = _chunk(sampler, extractors, start, count)
        except Exception as error:
            if count == 1 or not ran_out_of_memory(error):
                raise
            batch = about[BATCH] = count // 2
            continue
        for layer in features.keys() & parts.keys():
            parts[layer].append(features[layer])
        if chunk.images is not None:
            parts["images"].append(chunk.images[: max(0, IMAGES_KEPT - start)])
        on_chunk(chunk)
        about += added
        start += count
    return {name: np.concatenate(part) for name, part in parts.items() if part} | {ABOUT: about}


def finish(
    cell: Cell, metrics: Mapping[str, Metric], blocks: Sequence[Arrays], device: torch.device, clock: Clock
) -> tuple[Record, dict[str, NDArray[Any]]]:
    """The record of a cell all of whose blocks are there, in order, and their arrays joined."""
    about = np.sum([block[ABOUT] for block in blocks], axis=0)
    arrays = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0] if name != ABOUT}
    with clock.on("features"):  # of the reference: networks' work too
        for m in metrics.values():
            m.prepare(arrays[m.features], cell.plan.times)
    with clock.on("distances"):
        values = [v.to_dict() for m in metrics.values() for v in m.compute(arrays[m.features], cell.plan.times)]
    record = {
        "key": cell.key,
        "cell": cell.to_dict(),
        "metrics": values,
        "counted_nfe": _each(int(about[0]), cell.samples),
        "forwards_per_sample": _each(int(about[1]), cell.samples),
        "sampling": {"seconds": float(about[3]), "batch": min(int(block[ABOUT][BATCH]) for block in blocks)},
        "environment": environment(device),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return record, arrays


def _chunk(
    sampler: Sampler, extractors: Sequence[Extractor], start: int, count: int
) -> tuple[Chunk, dict[str, NDArray[Any]], NDArray[Any]]:
    """Samples start .. start + count - 1, their features by layer, and what they add to their block's `about`."""
    clock, denoiser = sampler.clock, sampler.denoiser
    counted, began = (denoiser.evaluated, denoiser.passed), clock.spent
    with clock.on("solver"):
        x_T, cond = sampler.inputs(start, count)
        x = sampler.draw(start, x_T, cond)
    features: dict[str, NDArray[Any]] = {}
    with clock.on("features"):
        chunk = Chunk.of(start, x, sampler.checkpoint)
        for extractor in extractors:
            features |= extractor.extract(chunk)
    seconds = clock.spent.network + clock.spent.solver - began.network - began.solver
    added = np.array([denoiser.evaluated - counted[0], denoiser.passed - counted[1], 0, seconds])
    return chunk, features, added


def _each(count: int, samples: int) -> int | float:
    """The count a sample: whole for a plan, a mean where steps adapt to the sample."""
    return count // samples if count % samples == 0 else count / samples
