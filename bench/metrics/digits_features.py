"""Features of digits: the last hidden layer of a small classifier, and its logits."""

from collections.abc import Mapping
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.checkpoints.bundle import BUNDLED, read_bundle
from bench.errors import UsageError
from bench.metrics.base import Chunk, Context, Features
from bench.metrics.features import Images

WIDTH = 64


class DigitsClassifier(nn.Module):
    """Two convolutions and a hidden layer of 64 features; images (B, 1, 8, 8) in [-1, 1] -> logits (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 24, 3, padding=1)
        self.conv2 = nn.Conv2d(24, 48, 3, padding=1)
        self.hidden = nn.Linear(48 * 4 * 4, WIDTH)
        self.logits = nn.Linear(WIDTH, 10)

    def features(self, x: Tensor) -> Tensor:
        h = F.silu(self.conv1(x))
        h = F.avg_pool2d(F.silu(self.conv2(h)), 2)
        return F.silu(self.hidden(h.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.features(x))


@cache
def classifier() -> tuple[DigitsClassifier, str]:
    """The shipped classifier and its digest."""
    bundle, network = read_bundle(BUNDLED / "digits_features"), DigitsClassifier()
    network.load_state_dict(dict(bundle.tensors))
    fast = network.to(memory_format=torch.channels_last)  # twice as fast on a CPU
    return fast.eval().requires_grad_(False), bundle.digest


class Digits(Images):
    """The hidden layer and the logits of the shipped digits classifier."""

    layers = ("digits", "digits_logits")
    needs = "8x8 grey images"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        if context.checkpoint.image_shape != (1, 8, 8):
            raise UsageError(f"features 'digits' need 8x8 grey images, not {context.checkpoint.image_shape}")
        self.network, digest = classifier()
        self.family = f"digits classifier {digest[:12]}"

    def extract(self, chunk: Chunk) -> Mapping[str, Features]:
        h = self.network.features((torch.from_numpy(chunk.images).float() - 127.5) / 127.5)
        return {"digits": h.numpy(), "digits_logits": self.network.logits(h).numpy()}

    def width(self, layer: str) -> int:
        return WIDTH if layer == "digits" else 10
