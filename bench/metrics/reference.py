"""What samples are compared with: real images, exact distributions, or statistics that somebody published."""

import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bench.checkpoints.base import Checkpoint
from bench.errors import UsageError
from bench.files import cache_folder, cached_array, sha256
from bench.images import ACCEPTED, ArrayImages, Images, check_n, images_at, parse_source
from bench.metrics.base import Chunk, Context, Extractor, Features
from bench.metrics.features import Images as OfBytes
from bench.metrics.gaussian import Gaussian, Moments
from bench.metrics.statistics import Statistics, Tags, holds_statistics, read_statistics

BATCH = 250  # images a pass through a feature network
EXACT_DRAWS = 10_000  # of a known distribution, for distances between samples
EXACT_SEED = 2**63 + 1  # of those draws: far from the seeds that people take
FORMAT = 1  # of kept features: raise it when those of the same family come to mean others
MAKERS = ("torch", "torch-fidelity", "clean-fid", "pillow")  # packages that features are taken through

Need = Literal["gaussian", "features"]


class Reference(ABC):
    """Features, or their first two moments, of what samples are compared with; nothing is computed before it is asked.

    `source` goes into records: data, n, sha256; `digest` tells two references apart.
    """

    source: Mapping[str, Any]

    @property
    def digest(self) -> str:
        return str(self.source["sha256"])

    def prepare(self) -> None:  # noqa: B027, most have their features, or need no network for them
        """Take the features where a network must."""

    @property
    @abstractmethod
    def gaussian(self) -> Gaussian:
        """Mean and covariance of the features."""

    @property
    @abstractmethod
    def features(self) -> Features:
        """The features themselves, (N, d); raises UsageError when only their moments are known."""


class OfImages(Reference):
    """Features of real images, taken once and kept for every later run on this machine."""

    def __init__(self, images: Images, extractor: Extractor, layer: str) -> None:
        self.images, self.extractor, self.layer = images, extractor, layer
        self.source = {"data": images.name, "n": len(images), "sha256": images.digest}

    def prepare(self) -> None:
        _ = self.features

    @cached_property
    def features(self) -> Features:
        made = [FORMAT, *map(version, MAKERS)]
        about = f"{self.digest} {self.images.shape} {self.extractor.family} {self.layer} {made}"
        return cached_array(f"features/{sha256(about.encode())[:32]}", lambda: self._layers()[self.layer])

    def _layers(self) -> dict[str, Features]:
        """All the extractor's layers from one pass over the images."""
        about = ("layers", self.digest, self.extractor.family)
        found: dict[str, Features] = self.extractor.context.shared(about, self._extract)
        return found

    def _extract(self) -> dict[str, Features]:
        start, parts = 0, []
        for images in self.images.batches(BATCH):
            parts.append(self.extractor.extract(Chunk(start, None, images)))
            start += len(images)
        return {layer: np.concatenate([part[layer] for part in parts]) for layer in parts[0]}

    @cached_property
    def gaussian(self) -> Gaussian:
        m = Moments.of(self.features, self.extractor.context.device)
        return Gaussian(m.mean, m.covariance, self.source)


class OfStatistics(Reference):
    """Statistics read from a file, of features that fit the extractor's."""

    def __init__(self, statistics: Statistics, tags: Tags) -> None:
        self.statistics = statistics
        self.source = {"data": tags.name, "n": tags.n, "sha256": statistics.digest}

    @cached_property
    def gaussian(self) -> Gaussian:
        return Gaussian(self.statistics.mean, self.statistics.covariance, self.source)

    @property
    def features(self) -> Features:
        if self.statistics.features is None:
            raise UsageError(f"{self.source['data']} is known by its mean and covariance alone")
        return self.statistics.features


class Exact(Reference):
    """A checkpoint's distribution itself: its moments, and draws from it.

    Its digest is of what defines it, not of the numbers, whose last bits are another machine's own.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        digest = sha256(json.dumps(["exact", checkpoint.digest, EXACT_SEED, EXACT_DRAWS]).encode())
        self.source = {"data": f"{checkpoint.name} exact", "sha256": digest}

    @cached_property
    def gaussian(self) -> Gaussian:
        assert self.checkpoint.moments is not None  # or there were no reference
        return Gaussian(*self.checkpoint.moments(), self.source)

    @cached_property
    def features(self) -> Features:
        assert self.checkpoint.draw is not None
        return np.asarray(self.checkpoint.draw(EXACT_SEED, 0, EXACT_DRAWS).flatten(1))


NAME = re.compile(r"\w[\w.-]*")  # of statistics kept on this machine
Source = Images | dict[str, Statistics]  # what a reference's text may mean; statistics by layer


def reference(context: Context, extractor: Extractor, layer: str, need: Need = "gaussian") -> Reference:
    """What a layer of the checkpoint's samples is compared with.

    `need` says what the metric will ask it for; raises UsageError when nothing there can serve that.
    """
    found: Reference = context.shared(("reference", layer, need), lambda: _find(context, extractor, layer, need))
    return found


def named(name: str) -> Path:
    """The folder on this machine of the statistics that were given a name, a file a layer."""
    return cache_folder() / "references" / name


def open_source(text: str) -> Source:
    """The images or the statistics that `text` means: files (bench.images says how they are written) or a name.

    Raises UsageError and UnknownNameError for what is not there, cannot be read or is not of `n` images.
    """
    path, options = parse_source(text)
    kept = []
    if NAME.fullmatch(str(path)) and not os.path.exists(path):
        kept = sorted(named(str(path)).glob("*.npz"))
        if not kept:
            there = ", ".join(sorted(p.name for p in named("").glob("*"))) or "none"
            raise UsageError(
                f"{text}: there is no {path}, nor such a name; give {ACCEPTED}, or one of the kept: {there}"
            )
    if not kept and ("images" in options or not holds_statistics(path)):
        return images_at(text, path, options)
    if unknown := options.keys() - {"n"}:
        raise UsageError(f"{text}: {min(unknown)} means nothing for statistics; their only option is n")
    found = {layer: s for file in kept or [path] for layer, s in read_statistics(file).items()}
    for s in found.values():
        if s.tags:
            check_n(text, s.tags.n, options.get("n"))
    return found


def source_of(context: Context, text: str) -> Source:
    """What `open_source` finds, opened once for all metrics."""
    found: Source = context.shared(("source", text), partial(open_source, text))
    return found


def _find(context: Context, extractor: Extractor, layer: str, need: Need) -> Reference:
    checkpoint, reasons = context.checkpoint, []
    for text in context.references or checkpoint.references:
        source = source_of(context, text)
        check_shape(text, source, checkpoint)
        try:
            return _serve(source, extractor, layer, need)
        except UsageError as error:
            reasons.append(f"{text}: {error}")
    if reasons:
        raise UsageError(f"no reference serves {layer!r} features: {'; '.join(reasons)}")
    if layer == "states":
        if checkpoint.moments is None:
            raise UsageError(f"features 'states' need a known distribution, and {checkpoint.name} has none")
        return Exact(checkpoint)
    if checkpoint.real is None:
        raise UsageError(f"{layer} features need real images, which {checkpoint.name} lacks: give a reference")
    real: Images = context.shared("real", lambda: ArrayImages(f"{checkpoint.name} train", checkpoint.real()))
    return _of_images(real, extractor, layer)


def check_shape(text: str, source: Source, checkpoint: Checkpoint) -> None:
    """Raises UsageError for a reference of another size than the samples, or one that does not say of which."""
    if isinstance(source, Images):
        shapes = {source.shape}
    elif all(s.tags for s in source.values()):
        shapes = {s.tags.shape for s in source.values() if s.tags}
    else:
        size, path = "x".join(map(str, checkpoint.image_shape)), parse_source(text)[0]
        raise UsageError(
            f"{text} does not say what it is of; state it once, if it is so: fewstep reference {path} --features "
            f"{','.join(filter(None, source)) or 'inception'} --samples 50000 --shape {size} --name NAME"
        )
    for shape in shapes - {checkpoint.image_shape}:
        there, here = ("x".join(map(str, s)) for s in (shape, checkpoint.image_shape))
        raise UsageError(f"{text} is of {there} images and {checkpoint.name} of {here}: give a reference of {here}")


def _serve(source: Source, extractor: Extractor, layer: str, need: Need) -> Reference:
    """The reference that a source is for a layer; raises UsageError saying why it is none."""
    if isinstance(source, Images):
        if not isinstance(extractor, OfBytes):
            raise UsageError(f"images have no {layer}")
        return _of_images(source, extractor, layer)
    if layer not in source:
        raise UsageError(f"it is of {', '.join(source)}")
    found = source[layer]
    tags = found.tags
    assert tags is not None  # or check_shape had refused it
    if tags.family != extractor.family:
        raise UsageError(f"it is of family {tags.family!r}, the samples of {extractor.family!r}")
    if len(found.mean) != extractor.width(layer):
        raise UsageError(f"it has {len(found.mean)} features, the samples have {extractor.width(layer)}")
    if need == "features" and found.features is None:
        raise UsageError("it holds a mean and a covariance, and the features themselves are needed: give images")
    return OfStatistics(found, tags)


def _of_images(images: Images, extractor: Extractor, layer: str) -> Reference:
    """One for all metrics, whatever they need of it."""
    about = ("features", images.digest, layer)
    found: Reference = extractor.context.shared(about, lambda: OfImages(images, extractor, layer))
    return found
