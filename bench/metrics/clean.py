"""Inception in clean-fid's three modes: the features that its folders of images would have, taken in memory.

Parmar, Zhang & Zhu 2022, arXiv 2104.11222.  Its TorchScript file runs as a program of torch's operators, not of Python,
but such a program may read and write files: take it from nowhere but its publisher.
"""

import tempfile
import warnings
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.metrics.inception import DIGEST
from bench.metrics.networks import NetworkFeatures
from bench.metrics.weights import WeightsFile, read_state

TORCHSCRIPT = WeightsFile(
    "inception-2015-12-05.pt",
    "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
    "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
    also=(Path(tempfile.gettempdir()),),  # where the package itself puts it
)
PYTORCH_FID = WeightsFile(
    "pt_inception-2015-12-05-6726825d.pth",
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    DIGEST,
)


class CleanFID(NetworkFeatures):
    """One of clean-fid's modes: its resizing, image by image, then its network."""

    mode: ClassVar[str]
    widths = (2048,)

    @cached_property
    def resize(self) -> Callable[[NDArray[np.uint8]], NDArray[np.generic]]:
        """Bytes (H, W, 3) to the size the network takes, as numbers in [0, 255]."""
        from cleanfid.resize import build_resizer

        with warnings.catch_warnings():  # one of the modes would silence every warning from now on
            return build_resizer(self.mode)

    def take(self, images: NDArray[np.uint8]) -> tuple[Tensor, ...]:
        resized = np.stack([self.resize(image) for image in images.transpose(0, 2, 3, 1)])
        x = torch.from_numpy(resized.transpose(0, 3, 1, 2)).to(self.context.device, torch.float32)
        return (self.embed(x),)

    def embed(self, x: Tensor) -> Tensor:
        """Features (n, 2048) of resized images (n, 3, H, W) in [0, 255]."""
        found: Tensor = self.network(x)
        return found


class TorchScript(CleanFID):
    """A mode that runs NVIDIA's TorchScript file."""

    needs = "clean-fid's Inception weights"
    file = TORCHSCRIPT

    def load(self, path: Path) -> nn.Module:
        from cleanfid.inception_torchscript import InceptionV3W

        with TemporaryDirectory() as folder:  # the package takes a folder, and knows the file in it by name
            Path(folder, self.file.name).symlink_to(path.resolve())
            return InceptionV3W(folder, download=False, resize_inside=self.mode == "legacy_tensorflow")


class InceptionClean(TorchScript):
    """clean-fid's own mode: Pillow's bicubic resizing, antialiased, to floats."""

    layers = ("inception_clean",)
    about = "inception clean-fid clean"
    mode = "clean"


class InceptionLegacyTF(TorchScript):
    """clean-fid's legacy_tensorflow mode: the network's own resizing, as TensorFlow 1 had it."""

    layers = ("inception_legacy_tf",)
    about = "inception clean-fid legacy_tensorflow"
    mode = "legacy_tensorflow"


class InceptionLegacyPT(CleanFID):
    """clean-fid's legacy_pytorch mode: pytorch-fid's bilinear resizing and its network."""

    layers = ("inception_legacy_pt",)
    needs = "pytorch-fid's Inception weights"
    about = "inception clean-fid legacy_pytorch"
    mode = "legacy_pytorch"
    file = PYTORCH_FID

    def load(self, path: Path) -> nn.Module:
        from cleanfid import inception_pytorch as package

        state = read_state(path)
        download = package.load_state_dict_from_url
        package.load_state_dict_from_url = lambda *_, **__: state  # the package takes its weights from nowhere else
        try:
            network: nn.Module = package.InceptionV3(output_blocks=[3], resize_input=False)
        finally:
            package.load_state_dict_from_url = download
        return network

    def embed(self, x: Tensor) -> Tensor:
        return self.network(x / 255)[0].flatten(1)
