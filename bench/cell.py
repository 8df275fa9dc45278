"""One cell: sample, take features, compute numbers; a pure function of the cell, but for the clock."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import solvers
from bench.checkpoints import Checkpoint
from bench.environment import environment
from bench.metrics import Chunk, Metric
from bench.spec import Cell
from bench.store import Record
from solvers import noise

IMAGES_KEPT = 32
OnChunk = Callable[[Chunk], None]


class CountError(RuntimeError):
    """A cell whose network was not called as often as its plan says."""


class Sampler:
    """Draws chunks of a cell's samples; sample i is the same in any chunk.

    `network` is one made before for another cell's denoiser, to share.
    """

    def __init__(
        self, cell: Cell, checkpoint: Checkpoint, device: torch.device, network: Callable[..., Tensor] | None = None
    ) -> None:
        self.cell = cell
        self.checkpoint = checkpoint
        self.device = device
        self.dtype: torch.dtype = getattr(torch, cell.dtype)
        self.denoiser = checkpoint.denoiser(cell.guide, device, self.dtype, cell.plan.times, network)

    def inputs(self, start: int, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        """x_T and conditions of samples start .. start + count - 1."""
        c, seed = self.checkpoint, self.cell.seed
        x_T = c.latents(seed, start, count, self.cell.plan.times[0]).to(self.device, self.dtype)
        return x_T, {"y": c.labels(seed, start, count, self.cell.classes).to(self.device)}

    def draw(self, start: int, x_T: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """The samples of these inputs; raises CountError, or FloatingPointError when one is not finite."""
        before = self.denoiser.calls

        def draws(k: int) -> Tensor:
            z = noise.normal(self.cell.seed, noise.STEP + k, start, len(x_T), self.checkpoint.shape)
            return torch.from_numpy(z).to(x_T)

        x = solvers.sample(self.cell.plan, self.denoiser, x_T, draws, cond=cond)
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
) -> tuple[Record, dict[str, NDArray[Any]]]:
    """The cell's record and its arrays; `on_chunk` sees every chunk of samples."""
    sampler = Sampler(cell, checkpoint, device)
    metrics = {name: m for name, m in metrics.items() if not (m.of_ode and (cell.plan.draws or cell.guide.plus_plus))}
    arrays, seconds = _sample(sampler, metrics, batch, on_chunk)
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
) -> tuple[dict[str, NDArray[Any]], float]:
    """The features that metrics look at, by layer, and the first images; and the seconds that samplers took."""
    extractors = list(dict.fromkeys(m.extractor for m in metrics.values()))  # one pass serves all layers of a network
    parts: dict[str, list[NDArray[Any]]] = {m.features: [] for m in metrics.values()} | {"images": []}
    seconds, samples = 0.0, sampler.cell.samples
    for start in range(0, samples, batch):
        x_T, cond = sampler.inputs(start, min(batch, samples - start))
        begin = time.perf_counter()
        x = sampler.draw(start, x_T, cond)
        seconds += time.perf_counter() - begin
        chunk = Chunk.of(start, x, sampler.checkpoint.kind)
        for extractor in extractors:
            for layer, features in extractor.extract(chunk).items():
                if layer in parts:
                    parts[layer].append(features)
        if chunk.images is not None:
            parts["images"].append(chunk.images[: max(0, IMAGES_KEPT - start)])
        on_chunk(chunk)
    return {name: np.concatenate(part) for name, part in parts.items() if part}, seconds


def _each(count: int, samples: int) -> int | float:
    """The count a sample: whole for a plan, a mean where steps adapt to the sample."""
    return count // samples if count % samples == 0 else count / samples
