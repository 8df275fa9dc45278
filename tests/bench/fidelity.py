"""The digits classifier as torch-fidelity takes feature networks, so that its numbers can be compared with ours."""

from typing import Any

from torch import Tensor
from torch_fidelity import register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from bench.metrics.digits_features import classifier

NAME, LAYER, LOGITS = "digits-classifier", "64", "logits"


class DigitsFeatures(FeatureExtractorBase):
    """uint8 (B, 1, 8, 8) -> (B, 64) and logits (B, 10), as asked for."""

    def __init__(self, name: str = NAME, features_list: tuple[str, ...] = (LAYER,), **kwargs: Any) -> None:
        super().__init__(name, list(features_list))
        self.network, _ = classifier()

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
