"""CLIP embeddings for CMMD.  Jayasumana et al. 2024, arXiv 2401.09603; Radford et al. 2021, arXiv 2103.00020.

The network is read by torch-fidelity (its `clip-vit-l-14-336px`), whose own resizing is TensorFlow 1's, bilinear; here
images are resized as by CMMD's own code: the middle square, by Pillow, bicubic and antialiased, to bytes.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from bench.metrics.networks import NetworkFeatures
from bench.metrics.weights import WeightsFile

NAME, DIGEST = "clip-vit-l-14-336px", "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
WEIGHTS = WeightsFile(
    f"{NAME}-{DIGEST}.pt",
    f"https://openaipublic.azureedge.net/clip/models/{DIGEST}/ViT-L-14-336px.pt",
    DIGEST,
    alone=False,
)


class CLIP(NetworkFeatures):
    """The image embedding of ViT-L/14 at 336 pixels, not yet normalised, resized as by CMMD."""

    layers = ("clip",)
    widths = (768,)
    needs = "OpenAI's CLIP weights"
    about = "clip vit-l/14@336 pillow bicubic"
    file = WEIGHTS

    def load(self, path: Path) -> nn.Module:
        from torch_fidelity.feature_extractor_clip import FeatureExtractorCLIP

        network: nn.Module = FeatureExtractorCLIP(NAME, ["clip"], feature_extractor_weights_path=str(path)).model.visual
        return network

    def take(self, images: NDArray[np.uint8]) -> tuple[Tensor, ...]:
        side = self.network.input_resolution
        resized = np.stack([square(image, side) for image in images.transpose(0, 2, 3, 1)])
        x = torch.from_numpy(resized.transpose(0, 3, 1, 2)).to(self.context.device, torch.float32) / 255
        mean, std = (torch.tensor(v, device=x.device)[:, None, None] for v in (MEAN, STD))
        return (self.network((x - mean) / std),)


def square(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The middle square of an image (H, W, 3), resized to (side, side, 3)."""
    height, width, _ = image.shape
    cut = min(height, width)
    top, left = (height - cut) // 2, (width - cut) // 2
    picture = Image.fromarray(np.ascontiguousarray(image[top : top + cut, left : left + cut]))
    return np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC))
