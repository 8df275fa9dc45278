"""`fewstep reference`: statistics of images, computed once, or foreign ones that are told once what they are of."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bench.errors import UsageError
from bench.files import check_new
from bench.images import Images, parse_source
from bench.metrics import Context
from bench.metrics.features import Images as OfBytes
from bench.metrics.features import extractor, usual
from bench.metrics.reference import NAME, OfImages, Source, named, open_source
from bench.metrics.statistics import Statistics, Tags, check_format, write_statistics
from bench.scoring import context_of


@dataclass(frozen=True)
class Order:
    """What somebody asked for: of which source, which layers, and where to; None and () stand for the usual.

    `samples` and `shape` (C, H, W) are for foreign statistics, which do not say what they are of.
    """

    source: str
    layers: tuple[str, ...]
    name: str | None
    samples: int | None
    shape: tuple[int, ...] | None
    out: Path | None
    form: str | None
    weights: Path | None
    device: torch.device


def make(order: Order) -> dict[Path, list[Statistics]]:
    """The statistics ordered, by the files they are in from now on; raises UsageError and UnknownNameError."""
    source = open_source(order.source)
    context = context_of(order.source, _shape(order, source), (), order.weights, order.device)
    name = order.name or parse_source(order.source)[0].stem
    if isinstance(source, Images):
        files = _files(order, name, order.layers or (usual(context),), True)  # before the long part
        found = _computed(source, [layer for held in files.values() for layer in held], context, name)
    else:
        found = _tagged(order, source, context, name)
        files = _files(order, name, tuple(found), False)
    made = {path: [found[layer] for layer in held] for path, held in files.items()}
    for path, statistics in made.items():
        images = source if isinstance(source, Images) else None
        write_statistics(path, statistics, _form(order, path), images)
    return made


def _shape(order: Order, source: Source) -> tuple[int, ...]:
    """Of the images that the source is of."""
    stated = order.samples is not None or order.shape is not None
    shapes = [source.shape] if isinstance(source, Images) else [s.tags and s.tags.shape for s in source.values()]
    if shapes[0] and all(shapes):
        if stated:
            raise UsageError(f"{order.source} says itself what it is of: leave --samples and --shape out")
        return shapes[0]
    if order.samples is None or order.shape is None:
        raise UsageError(f"{order.source} does not say of which images it is: give --samples N and --shape CxHxW")
    if order.samples < 2:
        raise UsageError(f"--samples {order.samples}: statistics are of 2 images or more")
    return order.shape


def _form(order: Order, path: Path) -> str:
    return order.form or path.suffix[1:]


def _files(order: Order, name: str, layers: Sequence[str], images: bool) -> dict[Path, Sequence[str]]:
    """Which layers go into which file; raises UsageError for a file that cannot be."""
    if order.out is None:
        if order.form:
            raise UsageError(f"--format {order.form} goes with --out; what is kept under a name is npz")
        if not NAME.fullmatch(name):
            raise UsageError(f"--name {name!r}: give letters, digits, dots and dashes, or a file with --out")
        files: dict[Path, Sequence[str]] = {named(name) / f"{layer}.npz": [layer] for layer in layers}
    else:
        files = {order.out: layers}
    for path, held in files.items():
        check_format(path, len(held), _form(order, path), images)
        check_new(path)
    return files


def _computed(images: Images, layers: Sequence[str], context: Context, name: str) -> dict[str, Statistics]:
    networks = {layer: extractor(context, layer) for layer in layers}
    for layer, network in networks.items():
        if not isinstance(network, OfBytes):
            raise UsageError(f"images have no {layer}")
    found = {}
    for layer, network in networks.items():
        to = OfImages(images, network, layer).gaussian
        tags = Tags(
            layer=layer, family=network.family, n=len(images), shape=images.shape, name=name, images=images.digest
        )
        found[layer] = Statistics(to.mean, to.covariance, tags)
    return found


def _tagged(order: Order, source: dict[str, Statistics], context: Context, name: str) -> dict[str, Statistics]:
    """The source's statistics of the layers asked for, or all; foreign ones with the tags that were stated."""
    if list(source) == [""] and len(order.layers) == 1:  # a foreign npz holds one layer and does not say which
        source = {order.layers[0]: source[""]}
    if "" in source or not source.keys() >= set(order.layers):
        held = ", ".join(filter(None, source)) or "one layer that it does not name"
        raise UsageError(f"{order.source} is of {held}: give --features accordingly")
    found = {}
    for layer in order.layers or source:
        s, network = source[layer], extractor(context, layer)
        if len(s.mean) != network.width(layer):
            raise UsageError(f"{order.source} has {len(s.mean)} features, and {layer} has {network.width(layer)}")
        if s.features is not None and len(s.features) != (s.tags.n if s.tags else order.samples):
            raise UsageError(f"{order.source} holds features of {len(s.features)} images, not of {order.samples}")
        about = {"layer": layer, "family": network.family, "n": order.samples, "shape": order.shape}
        old = s.tags.model_dump() if s.tags else about
        found[layer] = replace(s, tags=Tags.model_validate(old | {"name": name}))
    return found
