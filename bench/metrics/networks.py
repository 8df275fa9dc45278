"""Features by networks whose weights lie in published files."""

import warnings
from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.errors import UsageError
from bench.metrics.base import Chunk, Context, Features
from bench.metrics.features import Images
from bench.metrics.weights import WeightsFile, digest_of, in_short

PASS = 64  # images a pass: a few hundred MiB of activations


class NetworkFeatures(Images):
    """An extractor that runs a published network; grey images stand in all three of its channels, as with EDM.

    `family` is `about` and the weights' digest.  What is asked of a new subclass: which file, how the network is read
    from it, and how bytes become features.
    """

    file: ClassVar[WeightsFile]
    about: ClassVar[str]
    widths: ClassVar[tuple[int, ...]]  # of the layers

    def __init__(self, context: Context) -> None:
        """Reads the network at once only when its weights are not the published ones, so that wrong files are refused
        before anything is written.
        """
        super().__init__(context)
        if context.checkpoint.image_shape[0] not in (1, 3):
            raise UsageError(
                f"features {self.layers[0]!r} need grey or RGB images, not {context.checkpoint.image_shape}"
            )
        self.path = self.file.find(context.weights)
        digest = digest_of(self.path) if self.path else self.file.expect(self.layers[0])
        self.family = f"{self.about} {digest[:12]}"
        if digest != self.file.digest:
            self.family += " (not the published weights)"
            self._try()

    def _try(self) -> None:
        try:
            self.extract(Chunk(0, None, np.zeros((1, 3, 8, 8), np.uint8)))
        except UsageError:
            raise
        except Exception as error:  # whatever a wrong file makes a package do
            raise UsageError(f"{self.path} does not hold the network of {self.file.name}: {in_short(error)}") from error

    @abstractmethod
    def load(self, path: Path) -> nn.Module:
        """The network with the weights of this file; may fail in any way when they are another's."""

    @abstractmethod
    def take(self, images: NDArray[np.uint8]) -> tuple[Tensor, ...]:
        """The features of bytes (n, 3, H, W), each layer's (n, width)."""

    @cached_property
    def network(self) -> nn.Module:
        """On the context's device, ready; raises UsageError when it cannot be downloaded."""
        with warnings.catch_warnings():  # packages' deprecations, and the filters that they leave behind
            warnings.simplefilter("ignore")
            network = self.load(self.path or self.file.download())
        return network.to(self.context.device).eval().requires_grad_(False)

    @torch.inference_mode()
    def extract(self, chunk: Chunk) -> Mapping[str, Features]:
        assert chunk.images is not None
        images = chunk.images.repeat(3 // chunk.images.shape[1], axis=1)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # a GPU would round factors to 10 bits
            passes = [self.take(images[i : i + PASS]) for i in range(0, len(images), PASS)]
        found = [torch.cat(layer).cpu().numpy() for layer in zip(*passes, strict=True)]
        for features, width in zip(found, self.widths, strict=True):
            if features.shape != (len(images), width):
                raise UsageError(f"{self.path} gives features of shape {features.shape[1:]}, not {width} numbers")
        return dict(zip(self.layers, found, strict=True))

    def width(self, layer: str) -> int:
        return self.widths[self.layers.index(layer)]

    @classmethod
    def missing(cls, weights: Path | None) -> str | None:
        return None if cls.file.find(weights) else f"{cls.file.name} in {cls.file.home}"
