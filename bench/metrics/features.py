"""Features by name: which extractor gives which layer, and the two that need no network."""

import math
from collections.abc import Mapping

import numpy as np

from bench.checkpoints.base import unquantise
from bench.errors import UsageError
from bench.metrics.base import Chunk, Context, Extractor, Features
from solvers.registry import Registry

FEATURES = Registry(
    "features",
    "fewstep.features",
    {
        "digits": "bench.metrics.digits_features:Digits",
        "digits_logits": "bench.metrics.digits_features:Digits",
        "pixels": "bench.metrics.features:Pixels",
        "cifar10_jpeg": "bench.metrics.cifar10_features:Photographs",
        "first_pixels": "bench.metrics.features:FirstPixels",
        "states": "bench.metrics.features:States",
        "first_states": "bench.metrics.features:FirstStates",
        "inception": "bench.metrics.inception:Inception",
        "inception_logits": "bench.metrics.inception:Inception",
        "inception_clean": "bench.metrics.clean:InceptionClean",
        "inception_legacy_tf": "bench.metrics.clean:InceptionLegacyTF",
        "inception_legacy_pt": "bench.metrics.clean:InceptionLegacyPT",
        "dinov2": "bench.metrics.dinov2:DINOv2",
        "clip": "bench.metrics.clip:CLIP",
    },
)
OF_SHAPE = {"digits": (1, 8, 8)}  # shapes of samples that features of their own are shipped for
FIRST = 128  # samples that are enough for errors taken sample by sample
FIRST_IMAGES = 2000  # that distances between pairs of images look at; those of all may not fit into memory


def extractor(context: Context, layer: str) -> Extractor:
    """The extractor of a layer, one for all metrics; raises UsageError and UnknownNameError."""
    kind = FEATURES.get(layer)
    found: Extractor = context.shared(kind, lambda: kind(context))
    return found


def usual(context: Context) -> str:
    """The features to compare a checkpoint's samples in, if nothing else is asked for."""
    checkpoint = context.checkpoint
    if checkpoint.kind == "vector":
        return "states"
    return next((layer for layer, shape in OF_SHAPE.items() if shape == checkpoint.image_shape), "inception")


class Images(Extractor):
    """An extractor of images' bytes; refuses checkpoints that make none."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        if context.checkpoint.kind != "image":
            raise UsageError(f"features {self.layers[0]!r} need images, and {context.checkpoint.name} makes none")


class Pixels(Images):
    """Pixels in [-1, 1], after the samples were quantised to bytes."""

    layers = ("pixels",)
    needs = "images"
    family = "pixels"

    def extract(self, chunk: Chunk) -> Mapping[str, Features]:
        assert chunk.images is not None
        return {"pixels": unquantise(chunk.images).reshape(len(chunk), -1).astype(np.float32)}

    def width(self, layer: str) -> int:
        return math.prod(self.context.checkpoint.image_shape)


class FirstPixels(Pixels):
    """Pixels of the first samples, as many as distances between pairs of them need."""

    layers = ("first_pixels",)

    def extract(self, chunk: Chunk) -> Mapping[str, Features]:
        assert chunk.images is not None
        first = chunk.images[: max(0, FIRST_IMAGES - chunk.start)]
        return {"first_pixels": super().extract(Chunk(chunk.start, None, first))["pixels"]}


class States(Extractor):
    """The samples themselves."""

    layers = ("states",)
    needs = "nothing"
    family = "states"

    def extract(self, chunk: Chunk) -> Mapping[str, Features]:
        assert chunk.x is not None
        return {"states": chunk.x.flatten(1).cpu().numpy()}

    def width(self, layer: str) -> int:
        return math.prod(self.context.checkpoint.shape)


class FirstStates(Extractor):
    """The first samples themselves, as many as errors that are taken sample by sample need."""

    layers = ("first_states",)
    needs = "nothing"
    family = "trajectory"

    def extract(self, chunk: Chunk) -> Mapping[str, Features]:
        assert chunk.x is not None
        return {"first_states": chunk.x[: max(0, FIRST - chunk.start)].flatten(1).cpu().numpy()}

    def width(self, layer: str) -> int:
        return math.prod(self.context.checkpoint.shape)
