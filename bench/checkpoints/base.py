"""A checkpoint: a fixed network, the process it was trained on, and the data it is compared with."""

import copy
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import solvers
from bench.checkpoints.prompts import Prompts
from bench.errors import UsageError
from distill.batch import Data
from solvers import noise
from solvers.model import Prediction

Moments = tuple[NDArray[np.float64], NDArray[np.float64]]
Apart = Callable[[torch.device, int], Callable[[], object]]


BATCH = 2000


@dataclass(frozen=True)
class Guide:
    """How a checkpoint is guided: the scale, between which noise levels sigma/alpha, and whether by CFG++.

    See solvers.Guidance, which this becomes once the checkpoint's null label and the sampler's times are known.
    """

    scale: float = 1.0
    interval: tuple[float, float] | None = None
    plus_plus: bool = False

    @property
    def acts(self) -> bool:
        """Whether a sample takes two forwards anywhere: CFG++'s scale of 1 is no scale of 1."""
        return self.scale != 1 or self.plus_plus


@dataclass(frozen=True)
class Task:
    """What a checkpoint is asked for: how it is guided, samples of which classes (None: of all), of which prompts."""

    guide: Guide = Guide()
    classes: tuple[int, ...] | None = None
    prompts: Prompts | None = None


class Text(Protocol):
    """How a network is told of prompts."""

    def encode(self, prompts: Sequence[str], device: torch.device) -> dict[str, Tensor]:
        """The network's conditions, by keyword, with one row a prompt."""


@dataclass(frozen=True)
class Checkpoint:
    """A network ready to be sampled.

    `digest` is the SHA-256 of its weights, `shape` that of the space samples are made in, `classes` the probability of
    each class, whose number is also the label that means no class, unless the network `knows_no_class`; a network
    without classes gets no label, and one with a `text` the conditions that it makes of prompts.  With
    `scale_as_input` the scale of guidance is one more input, `w`, of a network that was distilled to obey it.

    `kind` says whether samples are images in [-1, 1], to be quantised once to bytes, or plain vectors; `decode` makes
    images of `image_shape` of latents (B, *shape), which it may do in parts.  `real` gives the real images
    (N, C, H, W) uint8 to compare with; of a known distribution, `moments` gives the mean and covariance and `draw`
    samples: (seed, start, count) -> (count, *shape), float64.  `training` draws what students are shown.  `apart` names
    work that is needed beside the network's calls, such as decoding latents, and timed apart: (device, batch) -> what
    is timed.  `references` are what samples are compared with, as `--reference` names it, where nothing else is asked
    for.  `reopen` gives the same checkpoint with further options, as a student's weights are.
    """

    name: str
    digest: str
    network: nn.Module
    schedule: solvers.Schedule
    predicts: Prediction
    shape: tuple[int, ...]
    classes: tuple[float, ...] = ()
    kind: Literal["image", "vector"] = "image"
    metrics: tuple[str, ...] = ("fid",)
    card: Mapping[str, Any] = field(default_factory=dict)
    real: Callable[[], NDArray[np.uint8]] | None = None
    moments: Callable[[], Moments] | None = None
    draw: Callable[[int, int, int], Tensor] | None = None
    apart: Mapping[str, Apart] = field(default_factory=dict)
    text: Text | None = None
    decode: Callable[[Tensor], Tensor] | None = None
    image_shape: tuple[int, ...] = ()
    scale_as_input: bool = False
    knows_no_class: bool = True
    references: tuple[str, ...] = ()
    training: Data | None = None
    reopen: Callable[[Mapping[str, solvers.Option]], "Checkpoint"] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_shape", self.image_shape or self.shape)

    @property
    def batch(self) -> int:
        """Samples a chunk, unless somebody knows better: as many as 2^20 numbers hold, and 2,000 at most."""
        return max(1, min(BATCH, 2**20 // math.prod(self.shape)))

    def denoiser(
        self,
        task: Task,
        device: torch.device,
        dtype: torch.dtype,
        times: tuple[float, ...] = (),
        network: Callable[..., Tensor] | None = None,
    ) -> solvers.Denoiser:
        """A copy of the network on `device`, behind a call counter, guided; CFG++ needs the sampler's `times`.

        `network` is one made ready before for the same device, which many denoisers may share.
        """
        if network is None:
            network = replica(self.network, device, dtype)
        guide = task.guide
        if self.scale_as_input:
            return solvers.Denoiser(network, self.schedule, self.predicts)
        null: dict[str, int | Tensor] = {"y": len(self.classes)} if self.classes else {}
        if self.text and guide.acts:
            null |= self.text.encode([task.prompts.negative if task.prompts else ""], device)
        steps = times if guide.plus_plus else ()
        guidance = solvers.Guidance(guide.scale, null, guide.interval or (0.0, math.inf), steps)
        return solvers.Denoiser(network, self.schedule, self.predicts, guidance)

    def conditions(
        self, task: Task, seed: int, start: int, count: int, device: torch.device, streams: int = 0
    ) -> dict[str, Tensor]:
        """What the network is told of samples start .. start + count - 1 beside their states, (count, ...) each."""
        cond: dict[str, Tensor] = {}
        if self.classes:
            cond["y"] = self.labels(seed, start, count, task.classes, streams).to(device)
        if self.text:
            assert task.prompts is not None
            cond |= self.text.encode(task.prompts.of(start, count), device)
        if self.scale_as_input:
            cond["w"] = torch.full((count,), task.guide.scale, device=device)
        return cond

    def latents(
        self,
        seed: int,
        start: int,
        count: int,
        t: float,
        streams: int = 0,
        normal: Callable[..., NDArray[np.float64]] = noise.normal,
    ) -> Tensor:
        """x_T of samples start .. start + count - 1, float64 (count, *shape), a pure function of (seed, index).

        `streams` is added to the noise's stream: other draws of the same seed; `normal` gives what solvers.noise does.
        """
        z = normal(seed, streams + noise.LATENT, start, count, self.shape)
        return torch.from_numpy(z) * self.schedule.prior_std(t)

    def labels(
        self, seed: int, start: int, count: int, classes: Collection[int] | None = None, streams: int = 0
    ) -> Tensor:
        """Classes of the same samples, (count,) int64, drawn with the checkpoint's probabilities (of these classes)."""
        shares = torch.tensor(self.classes, dtype=torch.float64)
        if classes is not None:
            shares[[k for k in range(len(shares)) if k not in classes]] = 0
        edges = (shares / shares.sum() if classes is not None else shares).cumsum(0)[:-1]
        u = noise.uniform(seed, streams + noise.LABEL, start, count, 1)
        return torch.bucketize(torch.from_numpy(u).flatten(), edges)

    def check(self, task: Task) -> None:
        """Raises UsageError where the checkpoint cannot be asked for that: classes, prompts or guidance."""
        for k in task.classes or ():
            if not 0 <= k < len(self.classes):
                has = f"has 0 to {len(self.classes) - 1}" if self.classes else "has none"
                raise UsageError(f"classes: {k} is no class of {self.name}, which {has}")
        if self.text and task.prompts is None:
            raise UsageError(
                f"{self.name} is told what to make by prompts: name a file with one a line, --prompts FILE"
            )
        if task.prompts and not self.text:
            raise UsageError(f"prompts {task.prompts.name}: {self.name} knows no text")
        guide = task.guide
        if self.scale_as_input:
            if guide.interval or guide.plus_plus:
                what = "cfg_plus_plus" if guide.plus_plus else "guidance_interval"
                raise UsageError(f"{what}: {self.name} is told one scale of guidance, as an input")
        elif guide.acts and not (self.text or (self.classes and self.knows_no_class)):
            lacks = "was not trained without its classes" if self.classes else "has neither classes nor text"
            instead = "leave cfg_plus_plus out" if guide.scale == 1 else "give 1"
            raise UsageError(f"guidance = {guide.scale:g}: {self.name} {lacks}; {instead}")


def replica(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The network on a device in a dtype; what needs no change is shared with the original, which stays as it was."""
    moved: dict[int, Tensor] = {
        id(p): nn.Parameter(p.detach().to(device), p.requires_grad) for p in network.parameters()
    }
    moved |= {id(b): b.to(device) for b in network.buffers()}
    return copy.deepcopy(network, moved).to(device, dtype)


def quantise(x: Tensor) -> NDArray[np.uint8]:
    """Images in [-1, 1] to bytes, once and as EDM does: (127.5 x + 128) clipped, (N, C, H, W)."""
    return (x * 127.5 + 128).clip(0, 255).to(torch.uint8).cpu().numpy()


def unquantise(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Bytes back to [-1, 1]."""
    return (images.astype(np.float64) - 127.5) / 127.5
