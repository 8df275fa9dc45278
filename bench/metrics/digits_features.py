"""Features of digits: the last hidden layer of a small classifier, as a torch-fidelity feature extractor."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity import register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from bench.checkpoints.bundle import BUNDLED, read_bundle
from bench.errors import UsageError
from bench.metrics.base import Chunk, Context, Features
from bench.metrics.features import Images

NAME, LAYER, LOGITS, WIDTH = "digits-classifier", "64", "logits", 64


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
    return network.eval().requires_grad_(False), bundle.digest


class DigitsFeatures(FeatureExtractorBase):
    """torch-fidelity's interface to the classifier: uint8 (B, 1, 8, 8) -> (B, 64) and logits (B, 10), as asked for."""

    def __init__(self, name: str = NAME, features_list: tuple[str, ...] = (LAYER,), **kwargs: Any) -> None:
        super().__init__(name, list(features_list))
        self.network, self.digest = classifier()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        h = self.network.features((x.float() - 127.5) / 127.5)
        found = {LAYER: h, LOGITS: self.network.logits(h)}
        return tuple(found[layer] for layer in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return (LAYER, LOGITS)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return LOGITS if metric == "isc" else LAYER

    @staticmethod
    def can_be_compiled() -> bool:
        return True


register_feature_extractor(NAME, DigitsFeatures)


class Digits(Images):
    """The hidden layer and the logits of the shipped digits classifier, taken through torch-fidelity's interface."""

    layers = ("digits", "digits_logits")
    needs = "8x8 grey images"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        if context.checkpoint.image_shape != (1, 8, 8):
            raise UsageError(f"features 'digits' need 8x8 grey images, not {context.checkpoint.image_shape}")
        self.network = DigitsFeatures(features_list=(LAYER, LOGITS))
        self.family = f"digits classifier {self.network.digest[:12]}"

    def extract(self, chunk: Chunk) -> Mapping[str, Features]:
        found = self.network(torch.from_numpy(chunk.images))
        return {layer: features.numpy() for layer, features in zip(self.layers, found, strict=True)}

    def width(self, layer: str) -> int:
        return WIDTH if layer == "digits" else 10
