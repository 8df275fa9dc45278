"""Features of 32x32 photographs: what a residual classifier of CIFAR-10 (JPEG copy) averages over positions."""

from collections.abc import Mapping
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.checkpoints.bundle import BUNDLED, read_bundle, read_card
from bench.errors import UsageError
from bench.metrics.base import Chunk, Context, Features
from bench.metrics.features import Images

LAYER = "cifar10_jpeg"
WIDTH = 256
PASS = 500  # images a pass


def convolution(inner: int, outer: int) -> nn.Sequential:
    """3x3, normalised over the batch, rectified."""
    return nn.Sequential(nn.Conv2d(inner, outer, 3, padding=1, bias=False), nn.BatchNorm2d(outer), nn.ReLU())


class Residual(nn.Module):
    """x + two convolutions of it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer = convolution(width, width), convolution(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(self.inner(x))


class PhotoClassifier(nn.Module):
    """A ResNet of eight convolutions; images (B, 3, 32, 32) in [-1, 1] -> logits (B, 10)."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        w = width // 8
        self.enter = nn.Sequential(convolution(3, w), convolution(w, 2 * w), nn.MaxPool2d(2), Residual(2 * w))
        self.middle = nn.Sequential(convolution(2 * w, 4 * w), nn.MaxPool2d(2))
        self.deep = nn.Sequential(convolution(4 * w, width), nn.MaxPool2d(2), Residual(width))
        self.logits = nn.Linear(width, 10)

    def features(self, x: Tensor) -> Tensor:
        """(B, 256), not negative."""
        return F.adaptive_avg_pool2d(self.deep(self.middle(self.enter(x))), 1).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.features(x))


class Photographs(Images):
    """The last features of the shipped classifier of photographs."""

    layers = (LAYER,)
    needs = "32x32 RGB images"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        if context.checkpoint.image_shape != (3, 32, 32):
            raise UsageError(f"features {LAYER!r} need 32x32 RGB images, not {context.checkpoint.image_shape}")
        self.family = f"{LAYER} features {read_card(BUNDLED / 'cifar10_jpeg_features')['sha256'][:12]}"

    @cached_property
    def network(self) -> PhotoClassifier:
        network = PhotoClassifier()
        bundle = read_bundle(BUNDLED / "cifar10_jpeg_features")
        network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in bundle.tensors.items()})
        fast = network.to(self.context.device, memory_format=torch.channels_last)
        return fast.eval().requires_grad_(False)

    def extract(self, chunk: Chunk) -> Mapping[str, Features]:
        assert chunk.images is not None
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # a GPU would round factors to 10 bits
            parts = [self._features(part) for part in torch.from_numpy(chunk.images).split(PASS)]
        return {LAYER: torch.cat(parts).numpy()}

    def _features(self, images: Tensor) -> Tensor:
        x = images.to(self.context.device, memory_format=torch.channels_last).float() / 127.5 - 1
        return self.network.features(x).cpu()

    def width(self, layer: str) -> int:
        return WIDTH
