"""Sets of images, wherever they lie: bytes (N, C, H, W), all of one size.

A set is written as a path, with what to take of it in parentheses, as options are everywhere else in sweeps:
`real/`, `cifar10.parquet(split=train)`, `batch.npz(images=arr_0, n=50000)`.  `n` states how many there must be,
`images` names the column or array they are in, and in a parquet file any other word is a column and the value its rows
have.

The digest is that of the pixels, so the same images are the same set in a folder, a table or an array.
"""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image

from bench.errors import UsageError
from bench.files import BROKEN, cached_array, open_npz, sha256, unpickled
from bench.words import parse
from solvers import Option, did_you_mean

Bytes = NDArray[np.uint8]
Shape = tuple[int, int, int]

SUFFIXES = frozenset(f".{s}" for s in ("png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm"))
GREY = frozenset(("1", "L", "LA"))  # Pillow's modes without colour
DEEP = ("I", "F")  # what its modes of more than 8 bits a channel begin with
HASHED = 1000  # images at a time
ACCEPTED = "a folder of images, a parquet file, or an npz or npy file of uint8"


class Images(ABC):
    """A set of images of one shape (C, H, W), with a name for people and the SHA-256 of its pixels."""

    name: str
    shape: Shape
    digest: str

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batches(self, size: int) -> Iterator[Bytes]:
        """All of them in order, (n, C, H, W) with n <= size."""


class ArrayImages(Images):
    """Images in memory, (N, C, H, W)."""

    def __init__(self, name: str, images: Bytes) -> None:
        self.name, self.images = name, images
        self.shape = images.shape[1:]

    @cached_property
    def digest(self) -> str:  # type: ignore[override]
        found = hashlib.sha256()
        for batch in self.batches(HASHED):  # a copy of all may not fit
            found.update(batch.tobytes())
        return found.hexdigest()

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, size: int) -> Iterator[Bytes]:
        for start in range(0, len(self), size):
            yield self.images[start : start + size]


class Decoded(Images):
    """Images decoded whenever they are asked for, after one pass over all that checks them and finds shape and digest.

    What that pass found is kept on this machine under `stamp`, if there is one: whatever changes when the files do.
    Grey images stay grey if all are; else they become RGB like the others.
    """

    def __init__(self, name: str, stamp: Any = None) -> None:
        self.name = name
        _check_count(name, len(self))
        if stamp is None:
            found = self._survey()
        else:
            key = sha256(json.dumps([PIL.__version__, stamp]).encode())[:32]
            found = cached_array(f"images/{key}", self._survey)
        channels, height, width, *digest = found.tolist()
        self.shape, self.digest = (channels, height, width), bytes(digest).hex()

    @abstractmethod
    def _each(self) -> Iterator[tuple[str, Bytes]]:
        """What to call it and its pixels, (1, H, W) or (3, H, W), one image after another."""

    def _survey(self) -> NDArray[np.int64]:
        """C, H, W and the 32 bytes of the digest."""
        grey, coloured = hashlib.sha256(), hashlib.sha256()  # which of them counts is known at the end
        first, size, channels = "", (0, 0), 1
        for label, image in self._each():
            if not first:
                first, size = label, image.shape[1:]
            elif image.shape[1:] != size:
                raise UsageError(
                    f"{self.name} holds images of several sizes: {first} is {_size(size)}, {label} is "
                    f"{_size(image.shape[1:])}; give images of one size"
                )
            channels = max(channels, len(image))
            grey.update(image.tobytes())
            coloured.update(_with_channels(image, 3).tobytes())
        digest = (grey if channels == 1 else coloured).digest()
        return np.array([channels, *size, *digest], dtype=np.int64)

    def batches(self, size: int) -> Iterator[Bytes]:
        batch = []
        for _, image in self._each():
            batch.append(_with_channels(image, self.shape[0]))
            if len(batch) == size:
                yield np.stack(batch)
                batch = []
        if batch:
            yield np.stack(batch)


class FolderImages(Decoded):
    """The image files in a folder and the folders in it, sorted by name; other files there do not count."""

    def __init__(self, folder: Path, name: str = "") -> None:
        found = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.name[0] != "." and p.is_file())
        self.files = sorted(found, key=lambda path: path.relative_to(folder).as_posix())
        about = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in self.files]
        super().__init__(name or str(folder), about)

    def __len__(self) -> int:
        return len(self.files)

    def _each(self) -> Iterator[tuple[str, Bytes]]:
        return ((str(path), decode(str(path), path)) for path in self.files)


class Dataset(Protocol):
    """What torch's datasets are, as far as images are concerned."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class DatasetImages(Decoded):
    """The images of a dataset object, whose items are the same at every visit.

    Items are uint8 tensors or arrays (C, H, W), PIL images, or tuples that begin with one.
    """

    def __init__(self, name: str, dataset: Dataset) -> None:
        self.dataset = dataset
        super().__init__(name)

    def __len__(self) -> int:
        return len(self.dataset)

    def _each(self) -> Iterator[tuple[str, Bytes]]:
        for i in range(len(self.dataset)):
            item, label = self.dataset[i], f"{self.name} item {i}"
            image = item[0] if isinstance(item, tuple | list) else item
            yield label, _pixels(label, image) if isinstance(image, Image.Image) else _checked(label, image)


def open_images(text: str) -> Images:
    """The set of images that `text` means; see the top of this file.  Raises UsageError and UnknownNameError."""
    path, options = parse_source(text)
    return images_at(text, path, options)


def parse_source(text: str) -> tuple[Path, dict[str, Option]]:
    """Path and options of `path` or `path(option=value, ...)`; parentheses in the name of a file that is there stay."""
    if os.path.exists(text):
        return Path(text), {}
    name, options = parse("source", text)
    return Path(name), options


def images_at(text: str, path: Path, options: Mapping[str, Option]) -> Images:
    """The images at a path, called `text`; raises as `open_images`."""
    where = dict(options)
    column, count = str(where.pop("images", "")), where.pop("n", None)
    if path.suffix != ".parquet" and where:
        raise UsageError(f"{text}: {next(iter(where))} means nothing here; options are images and n")
    images: Images
    if os.path.isdir(path):
        images = FolderImages(path, text)
    elif not os.path.exists(path):  # which, unlike Path's, has an answer for names that no file can have
        raise UsageError(f"{text}: there is no {path}; give {ACCEPTED}")
    elif path.suffix == ".parquet":
        from bench.parquet import ParquetImages  # whose library takes a while to load

        images = ParquetImages(path, where, column, text)
    elif path.suffix in (".npz", ".npy"):
        images = _arrays(text, path, column)
        _check_count(text, len(images))
    else:
        raise UsageError(f"{text} is no set of images; give {ACCEPTED}")
    check_n(text, len(images), count)
    return images


def check_n(text: str, n: int, stated: Option | None) -> None:
    """Raises UsageError unless there are as many images as stated, if anything is."""
    if stated is not None and stated != n:
        raise UsageError(f"{text} is of {n} images, not of n={stated}")


def _check_count(name: str, count: int) -> None:
    if count < 2:
        raise UsageError(f"{name} holds {'one image' if count else 'no images'}: give 2 or more")


def _size(size: tuple[int, ...]) -> str:
    return f"{size[1]}x{size[0]}"


def _with_channels(image: Bytes, channels: int) -> Bytes:
    return np.repeat(image, 3, 0) if len(image) < channels else image


def decode(label: str, file: Path | BytesIO) -> Bytes:
    """Pixels of an encoded image; raises UsageError when it is none, or has more than 8 bits a channel."""
    try:
        with Image.open(file) as image:
            image.load()
            return _pixels(label, image)
    except UsageError:
        raise
    except Exception as error:  # Pillow's decoders fail in many ways
        raise UsageError(f"{label} cannot be read as an image: {str(error).splitlines()[0]}") from error


def _pixels(label: str, image: Image.Image) -> Bytes:
    if image.mode.startswith(DEEP):
        raise UsageError(f"{label} has more than 8 bits a channel (mode {image.mode}): give 8-bit images")
    if image.mode in GREY:
        return np.asarray(image.convert("L"))[None]
    image.info.pop("transparency", None)  # of palettes; dropped here like any other alpha
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def _checked(label: str, image: Any) -> Bytes:
    """A tensor or array as pixels; raises UsageError for anything but uint8 (1 or 3, H, W)."""
    if not isinstance(image, torch.Tensor | np.ndarray):
        raise UsageError(f"{label} is a {type(image).__name__}: give uint8 tensors (C, H, W) or PIL images")
    pixels = np.asarray(image)
    _check_dtype(label, pixels)
    if pixels.ndim != 3 or len(pixels) not in (1, 3):
        raise UsageError(f"{label} has shape {pixels.shape}: give (C, H, W) with 1 or 3 channels")
    return pixels


def _check_dtype(label: str, array: NDArray[Any]) -> None:
    if array.dtype == np.uint8:
        return
    held = f"{array.dtype}"
    if np.issubdtype(array.dtype, np.number) and array.size:
        finite = bool(np.isfinite(array).all())
        held += f" from {array.min():g} to {array.max():g}" if finite else ", some NaN or infinite"
    raise UsageError(f"{label} holds {held}: give bytes (uint8, 0 to 255), quantised once")


def _arrays(text: str, path: Path, name: str) -> ArrayImages:
    """The array of images in an npy or npz file: the one called `name`, ADM's `arr_0`, or the only one there."""
    if path.suffix == ".npy":
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except BROKEN as error:
            raise UsageError(f"{path} cannot be read as npy: {unpickled(error)}") from error
    else:
        with open_npz(path) as arrays:
            held = list(arrays)
            name = name or ("arr_0" if "arr_0" in held else held[0] if len(held) == 1 else "")
            array = arrays[name] if name in held else None
        if array is None and name:
            raise did_you_mean(f"array of {path}", name, held)
        if array is None:
            raise UsageError(f"{path} holds {', '.join(held) or 'nothing'}: name the images, {path}(images=NAME)")
    _check_dtype(text, array)
    return ArrayImages(text, _channels_first(text, array, name))


def _channels_first(text: str, array: Bytes, name: str) -> Bytes:
    """(N, C, H, W) of that or of (N, H, W, C), which ADM's `arr_0` is where both could be."""
    axes = [k for k in (1, 3) if array.ndim == 4 and array.shape[k] in (1, 3)]
    if axes == [3] or (len(axes) == 2 and name == "arr_0"):
        return array.transpose(0, 3, 1, 2)
    if axes == [1]:
        return array
    raise UsageError(f"{text} has shape {array.shape}: give (N, H, W, C) or (N, C, H, W) with 1 or 3 channels")
