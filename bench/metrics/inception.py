"""Inception as torch-fidelity has it: TensorFlow's weights and TensorFlow 1's resizing, the family of EDM and ADM."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.metrics.networks import NetworkFeatures
from bench.metrics.weights import WeightsFile, read_state

DIGEST = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"  # of pytorch-fid's file too
WEIGHTS = WeightsFile(
    "weights-inception-2015-12-05-6726825d.pth",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    DIGEST,
)


class Inception(NetworkFeatures):
    """The last pool's 2048 features and the 1008 logits without their bias, in one pass."""

    layers = ("inception", "inception_logits")
    widths = (2048, 1008)
    needs = "torch-fidelity's Inception weights"
    about = "inception torch-fidelity"
    file = WEIGHTS

    def load(self, path: Path) -> nn.Module:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        read_state(path)  # first, since the package would unpickle whatever is in it
        wanted = ["2048", "logits_unbiased"]
        return FeatureExtractorInceptionV3("inception-v3-compat", wanted, feature_extractor_weights_path=str(path))

    def take(self, images: NDArray[np.uint8]) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = self.network(torch.from_numpy(images).to(self.context.device))
        return found
