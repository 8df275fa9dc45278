"""A checkpoint: a fixed network, the process it was trained on, and the data it is compared with."""

import copy
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import solvers
from bench.errors import UsageError
from solvers import noise
from solvers.model import Prediction

Moments = tuple[NDArray[np.float64], NDArray[np.float64]]
Apart = Callable[[torch.device, int], Callable[[], object]]


@dataclass(frozen=True)
class Guide:
    """How a checkpoint is guided: the scale, between which noise levels sigma/alpha, and whether by CFG++.

    See solvers.Guidance, which this becomes once the checkpoint's null label and the sampler's times are known.
    """

    scale: float = 1.0
    interval: tuple[float, float] | None = None
    plus_plus: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """A network ready to be sampled.

    `digest` is the SHA-256 of its weights, `classes` the probability of each class, whose number is also the label that
    means no class.  `kind` says whether samples are images in [-1, 1], to be quantised once to bytes, or plain vectors.
    `real` gives the real images (N, C, H, W) uint8 to compare with; of a known distribution, `moments` gives the mean
    and covariance and `draw` samples: (seed, start, count) -> (count, *shape), float64.  `apart` names work that is
    needed beside the network's calls, such as decoding latents, and timed apart: (device, batch) -> what is timed.
    """

    name: str
    digest: str
    network: nn.Module
    schedule: solvers.Schedule
    predicts: Prediction
    shape: tuple[int, ...]
    classes: tuple[float, ...]
    kind: Literal["image", "vector"]
    metrics: tuple[str, ...]
    card: Mapping[str, Any]
    real: Callable[[], NDArray[np.uint8]] | None = None
    moments: Callable[[], Moments] | None = None
    draw: Callable[[int, int, int], Tensor] | None = None
    apart: Mapping[str, Apart] = field(default_factory=dict)

    def denoiser(
        self,
        guide: Guide,
        device: torch.device,
        dtype: torch.dtype,
        times: tuple[float, ...] = (),
        network: Callable[..., Tensor] | None = None,
    ) -> solvers.Denoiser:
        """A copy of the network on `device`, behind a call counter, guided; CFG++ needs the sampler's `times`.

        Weights keep their own precision, but rise to float64 when that is asked for.  `network` is a copy made before
        for the same device and dtype, which many denoisers may share.
        """
        if network is None:
            copied = copy.deepcopy(self.network).to(device)
            network = copied.double() if dtype == torch.float64 else copied
        null, steps = {"y": len(self.classes)}, times if guide.plus_plus else ()
        guidance = solvers.Guidance(guide.scale, null, guide.interval or (0.0, math.inf), steps)
        return solvers.Denoiser(network, self.schedule, self.predicts, guidance)

    def latents(self, seed: int, start: int, count: int, t: float, streams: int = 0) -> Tensor:
        """x_T of samples start .. start + count - 1, float64 (count, *shape), a pure function of (seed, index).

        `streams` is added to the noise's stream: other draws of the same seed.
        """
        z = noise.normal(seed, streams + noise.LATENT, start, count, self.shape)
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

    def check_classes(self, classes: Collection[int]) -> None:
        """Raises UsageError unless these are some of the checkpoint's classes."""
        for k in classes:
            if not 0 <= k < len(self.classes):
                raise UsageError(f"classes: {k} is no class of {self.name}, which has 0 to {len(self.classes) - 1}")


def quantise(x: Tensor) -> NDArray[np.uint8]:
    """Images in [-1, 1] to bytes, once and as EDM does: (127.5 x + 128) clipped, (N, C, H, W)."""
    return (x * 127.5 + 128).clip(0, 255).to(torch.uint8).cpu().numpy()


def unquantise(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Bytes back to [-1, 1]."""
    return (images.astype(np.float64) - 127.5) / 127.5
