"""DINOv2 features for FD-DINOv2.  Stein et al. 2023, arXiv 2306.04675; Oquab et al. 2023, arXiv 2304.07193.

torch-fidelity's `dinov2-vit-l-14` resizes as TensorFlow 1 did, bilinearly; the published numbers do not.  Here images
are resized as by EDM2: bicubic, antialiased, to floats, so that numbers compare with EDM2's and with its reference
files (Stein et al. round to bytes after the same filter).
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.errors import UsageError
from bench.metrics.base import Context
from bench.metrics.networks import NetworkFeatures
from bench.metrics.weights import WITHOUT, WeightsFile, hub, reachable, read_state

SIDE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
REPOSITORY = "facebookresearch/dinov2"  # the network's code, which torch hub runs from its cached copy
WEIGHTS = WeightsFile(
    "dinov2_vitl14_pretrain.pth",
    "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
    "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
    alone=False,
)


class DINOv2(NetworkFeatures):
    """The class token of ViT-L/14, resized as by EDM2."""

    layers = ("dinov2",)
    widths = (1024,)
    needs = "DINOv2's weights and code"
    about = "dinov2 vit-l/14 bicubic"
    file = WEIGHTS

    def __init__(self, context: Context) -> None:
        if not code().is_dir() and not reachable(f"https://github.com/{REPOSITORY}"):
            raise UsageError(
                f"features 'dinov2' need torch hub's copy of {REPOSITORY}, which is not at {code()}, and github.com "
                f"does not answer; without it work {WITHOUT}"
            )
        super().__init__(context)

    def load(self, path: Path) -> nn.Module:
        state = read_state(path)
        network: nn.Module = torch.hub.load(
            f"{REPOSITORY}:main", "dinov2_vitl14", pretrained=False, skip_validation=True, verbose=False
        )
        network.load_state_dict(state)
        return network

    def take(self, images: NDArray[np.uint8]) -> tuple[Tensor, ...]:
        x = torch.from_numpy(images).to(self.context.device, torch.float32)
        x = F.interpolate(x, size=(SIDE, SIDE), mode="bicubic", antialias=True) / 255
        mean, std = (torch.tensor(v, device=x.device)[:, None, None] for v in (MEAN, STD))
        return (self.network((x - mean) / std),)

    @classmethod
    def missing(cls, weights: Path | None) -> str | None:
        lacks = [super().missing(weights), None if code().is_dir() else f"{REPOSITORY} at {code()}"]
        return ", ".join(filter(None, lacks)) or None


def code() -> Path:
    """Where torch hub keeps the network's code."""
    return hub() / f"{REPOSITORY.replace('/', '_')}_main"
