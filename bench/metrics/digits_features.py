"""Features of digits: the last hidden layer of a small classifier, as a torch-fidelity feature extractor."""

from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch_fidelity import register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from bench.checkpoints.bundle import BUNDLED, read_bundle

NAME, LAYER, WIDTH = "digits-classifier", "64", 64


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
    """torch-fidelity's interface to the classifier: uint8 (B, 1, 8, 8) -> ((B, 64),)."""

    def __init__(self, name: str = NAME, features_list: tuple[str, ...] = (LAYER,), **kwargs: Any) -> None:
        super().__init__(name, list(features_list))
        self.network, self.digest = classifier()

    def numpy(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features (N, 64) of images (N, 1, 8, 8)."""
        return self(torch.from_numpy(images))[0].numpy()

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.network.features((x.float() - 127.5) / 127.5),)

    @staticmethod
    def get_provided_features_list() -> tuple[str]:
        return (LAYER,)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return LAYER

    @staticmethod
    def can_be_compiled() -> bool:
        return True


register_feature_extractor(NAME, DigitsFeatures)
