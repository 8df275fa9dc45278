"""Files that are either whole or absent."""

import errno
import hashlib
import json
import lzma
import os
import stat
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_path

from bench.errors import UsageError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
BROKEN = (  # what numpy raises for files that it cannot read
    OSError, ValueError, EOFError, TypeError, RuntimeError, MemoryError, tokenize.TokenError, zipfile.BadZipFile,
    zlib.error, lzma.LZMAError,
)  # fmt: skip
LONGEST, DEEPEST = 255, 4000  # bytes of a file's name, and with all folders above it, that file systems take


def write_atomically(path: Path, write: Callable[[BinaryIO], object], durable: bool = True) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to the disk, and move it into place.

    What is not `durable` survives the process but not a power cut, and costs no wait for the disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would keep others from reading results
        os.replace(temporary, path)
    except BaseException as error:
        if isinstance(error, OSError):
            error.filename = error.filename or str(path)  # of a full disk nobody says which
        os.unlink(temporary)
        raise
    if not durable:
        return
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)  # without it the new name may not survive a power cut
    os.close(folder)


def no_room(error: BaseException) -> bool:
    """Whether a disk takes nothing more: it is full, or not to be written any longer."""
    return isinstance(error, OSError) and error.errno in NO_ROOM


def read_small(path: Path, most: int = 2**26) -> str:
    """The text of a UTF-8 file of at most so many bytes; raises OSError and ValueError, which say why it is not read.

    A device or a pipe is no file: it may have no end, or keep its reader waiting.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is no file")
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return data.decode()


def nearest_folder(path: Path) -> Path:
    """The folder that is there already, at the path or above it.

    Raises UsageError where a file, or a link to nothing, is in its place, or a name is too long.
    """
    if (
        max(len(os.fsencode(part)) for part in ("", *path.parts)) > LONGEST
        or len(os.fsencode(path.absolute())) > DEEPEST
    ):
        raise UsageError(f"{path} is no name for a file: give {LONGEST} bytes at most, and {DEEPEST} with its folders")
    place = next(p for p in (path, *path.absolute().parents) if os.path.lexists(p))
    if not place.is_dir():
        raise UsageError(f"{path}: {place} is a file, not a folder")
    return place


def check_new(path: Path) -> None:
    """Raises UsageError when there is something at the path, or a file where a folder above it should be."""
    if os.path.lexists(path):
        raise UsageError(f"{path} is there already: give another name")
    nearest_folder(path)


def write_new(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """As `write_atomically`, for files that people name; raises UsageError as `check_new`, or as the disk refuses."""
    check_new(path)
    try:
        write_atomically(path, write)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: Any) -> None:
    """Indented JSON; NaN and infinity are refused, since JSON has neither."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def cache_folder() -> Path:
    """Where what is dear to compute is kept between runs: $FEWSTEP_CACHE, or the platform's place for caches."""
    return Path(os.environ.get("FEWSTEP_CACHE") or user_cache_path("fewstep"))


def cached_array(name: str, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    """The array kept under this name, or what `make` makes, kept from now on; an unreadable file counts as none."""
    path = cache_folder() / f"{name}.npy"
    try:
        kept: NDArray[Any] = np.load(path)
    except BROKEN:
        kept = make()
        with suppress(OSError):  # a disk that is full or not ours costs the next run time, and this one nothing
            write_atomically(path, lambda file: np.save(file, kept))
    return kept


@contextmanager
def open_npz(path: Path) -> Iterator[Mapping[str, NDArray[Any]]]:
    """The arrays in an npz file, read as they are asked for and never unpickled; raises UsageError when they cannot."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            yield arrays
    except UsageError:
        raise
    except BROKEN as error:
        raise UsageError(f"{path} cannot be read as npz: {unpickled(error)}") from error


def unpickled(error: Exception) -> str:
    """Why an array cannot be read; numpy's own words for what is no array advise to unpickle it."""
    return "it holds no plain arrays, and nothing is unpickled" if "pickle" in str(error) else str(error)
