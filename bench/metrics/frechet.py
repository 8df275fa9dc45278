"""Frechet distances in the feature spaces people compare in; each is a family, and only Inception's are called FID."""

import math
from dataclasses import replace
from typing import ClassVar

from bench.errors import UsageError
from bench.metrics.base import Context, Features, Value
from bench.metrics.comparison import Comparison
from bench.metrics.gaussian import Gaussian, Moments, frechet, richardson

WIDEST = 16_384  # features: a covariance of 2 GiB


class Frechet(Comparison):
    """The Frechet distance of features to those of the reference."""

    layer: ClassVar[str]
    asks_for = "gaussian"

    def __init__(self, context: Context) -> None:
        super().__init__(context, self.layer)
        if (d := self.extractor.width(self.layer)) > WIDEST:
            raise UsageError(f"metric {self.name!r}: the covariance of {d} features is too large; at most {WIDEST}")

    def evaluate(self, features: Features, plan_times: tuple[float, ...]) -> list[Value]:
        to: Gaussian = self.reference.gaussian
        device = self.context.device
        quarters = Moments.quarters(features, device)
        value, influence = frechet(features, to, device, quarters)
        found = self.value(value, len(features), self.reference.source, influence=influence)
        if extrapolated := richardson(features, to, value, device, quarters):
            found = replace(found, at_infinity=(extrapolated[0], math.hypot(found.se, extrapolated[1])))
        return [found]

    def warnings(self, samples: int) -> list[str]:
        d = self.extractor.width(self.layer)
        if samples >= d:
            return []
        return [f"{self.name}: {samples} samples for {d} features: the distance is mostly bias; take {2 * d} or more"]


class FrechetPixels(Frechet):
    """Between pixels in [-1, 1], after the samples were quantised to bytes."""

    name, needs, layer = "frechet_pixels", "images", "pixels"


class FrechetDigits(Frechet):
    """Between features of the shipped digits classifier."""

    name, needs, layer = "frechet_digits", "8x8 grey images", "digits"


class FrechetCIFAR10(Frechet):
    """Between features of the shipped classifier of CIFAR-10 (JPEG copy): never to be compared with a FID."""

    name, needs, layer = "frechet_cifar10_jpeg", "32x32 RGB images", "cifar10_jpeg"


class FrechetExact(Frechet):
    """Between the states themselves, against the distribution's exact mean and covariance."""

    name, needs, layer = "frechet_exact", "a distribution with known moments", "states"


class FID(Frechet):
    """Frechet Inception distance by torch-fidelity: the family of EDM's, ADM's and diff-sampler's numbers."""

    name, needs, layer = "fid", "torch-fidelity's Inception weights", "inception"


class FIDClean(Frechet):
    """FID by clean-fid in its own mode: bicubic resizing without aliasing."""

    name, needs, layer = "fid_clean", "clean-fid's Inception weights", "inception_clean"


class FIDLegacyTF(Frechet):
    """FID by clean-fid in its legacy_tensorflow mode, near the TensorFlow family but for its weights' file."""

    name, needs, layer = "fid_legacy_tf", "clean-fid's Inception weights", "inception_legacy_tf"


class FIDLegacyPT(Frechet):
    """FID by clean-fid in its legacy_pytorch mode: pytorch-fid's resizing and weights."""

    name, needs, layer = "fid_legacy_pt", "pytorch-fid's Inception weights", "inception_legacy_pt"


class FDDINOv2(Frechet):
    """Frechet distance in DINOv2 features.  Stein et al. 2023, arXiv 2306.04675."""

    name, needs, layer = "fd_dinov2", "DINOv2 weights", "dinov2"
