"""Means and covariances of features in files: ours, and those that EDM, EDM2, ADM and clean-fid publish.

    npz  `mu`, `sigma` and, of the features themselves, `feats`: EDM's and clean-fid's; ours adds `tags`, a JSON text
    pkl  EDM2's: {"fid": {"mu", "sigma"}, "fd_dinov2": {...}}, one entry a layer; ours adds "tags" to each
    adm  an npz with the images too, `arr_0` (N, H, W, C)

Foreign files say neither which network nor how many images they are of; somebody has to, once (`fewstep reference`).
"""

import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.errors import UsageError
from bench.files import open_npz, sha256, write_new
from bench.images import Images
from bench.metrics.base import Features
from bench.metrics.gaussian import Matrix, Moments
from bench.pickles import NUMPY, Array, read_pickle

EDM2 = {"fid": "inception", "fd_dinov2": "dinov2"}  # its names of layers
FORMATS = {"npz": ".npz", "pkl": ".pkl", "adm": ".npz"}
ARRAYS = ("mu", "sigma", "feats", "tags")
SYMMETRIC = 1e-5  # of the largest entry: covariances that were stored in single precision


class Tags(BaseModel):
    """What statistics are of: a layer's family, n images of a shape (C, H, W), and the SHA-256 of those if known."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: str
    family: str
    n: Annotated[int, Field(ge=2)]
    shape: tuple[int, ...]
    name: str
    images: str | None = None


@dataclass(frozen=True)
class Statistics:
    """Mean (d,) and covariance (d, d) of features, and the features (N, d) where a file has them; a foreign file's
    have no tags.
    """

    mean: Matrix
    covariance: Matrix
    tags: Tags | None = None
    features: Features | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the numbers and what they are of; the same in any format and under any name."""
        about = self.tags.model_dump_json(exclude={"name", "images"}) if self.tags else ""
        features = [] if self.features is None else [np.ascontiguousarray(self.features).tobytes()]
        return sha256(b"".join([about.encode(), self.mean.tobytes(), self.covariance.tobytes(), *features]))


def read_statistics(path: Path) -> dict[str, Statistics]:
    """The statistics in a file by layer; a foreign npz does not name its own, which is then "".  Raises UsageError."""
    if path.suffix == ".npz":
        with open_npz(path) as arrays:
            found = {"": {name: arrays[name] for name in ARRAYS if name in arrays}}
    else:
        found = _read_pickle(path)
    read = {layer: _checked(f"{path}: {layer}" if layer else str(path), held) for layer, held in found.items()}
    return {s.tags.layer if s.tags else layer: s for layer, s in read.items()}


def holds_statistics(path: Path) -> bool:
    """Whether a file is one of statistics rather than of images."""
    if path.suffix not in (".npz", ".pkl") or not os.path.isfile(path):
        return False
    if path.suffix == ".pkl":
        return True
    with open_npz(path) as arrays:
        return "mu" in arrays or "feats" in arrays


def write_statistics(path: Path, statistics: Sequence[Statistics], form: str, images: Images | None = None) -> None:
    """Write tagged statistics whole or not at all; raises UsageError as `check_format` and `write_new` do."""
    check_format(path, len(statistics), form, images is not None)
    entries = {s.tags.layer: _entry(s) for s in statistics if s.tags}

    def write(file: Any) -> None:
        if form == "pkl":
            names = {layer: name for name, layer in EDM2.items()}
            pickle.dump({names.get(layer, layer): entry for layer, entry in entries.items()}, file, protocol=4)
            return
        (entry,) = entries.values()
        if images is not None and form == "adm":
            batches = [batch.transpose(0, 2, 3, 1) for batch in images.batches(1000)]
            entry = {"arr_0": np.concatenate(batches)} | entry
        np.savez(file, **entry)

    write_new(path, write)


def check_format(path: Path, layers: int, form: str, images: bool) -> None:
    """Raises UsageError unless statistics of so many layers, with or without images, can go there in this format."""
    if form not in FORMATS:
        raise UsageError(f"{path}: format {form!r} is none of {', '.join(FORMATS)}")
    if path.suffix != FORMATS[form]:
        raise UsageError(f"{path}: format {form} goes into a file that ends in {FORMATS[form]}")
    if layers > 1 and form != "pkl":
        raise UsageError(f"{path}: format {form} holds one layer of features: for {layers} give a file ending in .pkl")
    if form == "adm" and not images:
        raise UsageError(f"{path}: format adm holds the images too, which statistics alone do not have")


def _entry(s: Statistics) -> dict[str, Any]:
    assert s.tags is not None
    features = {} if s.features is None else {"feats": s.features}
    return {"mu": s.mean, "sigma": s.covariance, "tags": s.tags.model_dump_json(), **features}


def _read_pickle(path: Path) -> dict[str, dict[str, Any]]:
    try:
        data = read_pickle(path.read_bytes(), NUMPY)
    except (OSError, UsageError) as error:
        raise UsageError(f"{path} cannot be read as statistics: {error}") from error
    if not isinstance(data, dict) or not data or not all(isinstance(held, dict) for held in data.values()):
        raise UsageError(f"{path} holds no statistics as EDM2 writes them: {{'fid': {{'mu': ..., 'sigma': ...}}}}")
    return {EDM2.get(name, name): _plain(held) for name, held in data.items()}


def _plain(held: Mapping[str, Any]) -> dict[str, Any]:
    """With arrays, of memory of their own, in place of what stands for them."""
    return {name: value.array.copy() if isinstance(value, Array) else value for name, value in held.items()}


def _checked(label: str, held: Mapping[str, Any]) -> Statistics:
    """Statistics of what a file holds; raises UsageError naming what is wrong."""
    tags = _tags(label, held["tags"]) if "tags" in held else None
    features = _matrix(label, "feats", held["feats"], 2) if "feats" in held else None
    if "mu" not in held and features is not None and len(features) > 1:
        m = Moments.of(features)
        return Statistics(m.mean, m.covariance, tags, features)
    if missing := [name for name in ("mu", "sigma") if name not in held]:
        raise UsageError(f"{label} lacks {' and '.join(missing)}: statistics are arrays mu and sigma")
    mean = _matrix(label, "mu", held["mu"], 1).astype(np.float64)
    covariance = _matrix(label, "sigma", held["sigma"], 2).astype(np.float64)
    d = len(mean)
    if covariance.shape != (d, d) or (features is not None and features.shape[1] != d):
        raise UsageError(f"{label}: mu has {d} entries, sigma is {covariance.shape}: give (d,) and (d, d)")
    if abs(covariance - covariance.T).max() > SYMMETRIC * abs(covariance).max() or covariance.diagonal().min() < 0:
        raise UsageError(f"{label}: sigma is not symmetric with a diagonal of variances: it is no covariance")
    if tags and features is not None and len(features) != tags.n:
        raise UsageError(f"{label} holds features of {len(features)} images and says that they are {tags.n}")
    return Statistics(mean, covariance, tags, features)


def _matrix(label: str, name: str, array: Any, axes: int) -> Features:
    """The array if it is of finite real numbers along so many axes, and not empty."""
    real = isinstance(array, np.ndarray) and array.dtype.kind in "fiu"
    if not real or array.ndim != axes or not array.size:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise UsageError(f"{label}: {name} is {found}: give real numbers along {axes} axes")
    if not np.isfinite(array).all():
        raise UsageError(f"{label}: {name} has entries that are NaN or infinite")
    return np.asarray(array)


def _tags(label: str, text: Any) -> Tags:
    try:
        return Tags.model_validate_json(str(text))
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            f"{label}: its tags cannot be read: {'.'.join(map(str, first['loc']))} {first['msg']}"
        ) from None
