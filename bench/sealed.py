"""Files that tell when they were damaged: JSON and arrays with a digest of what is in them."""

import hashlib
import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from bench.errors import UsageError
from bench.files import open_npz, sha256, write_atomically, write_text

Arrays = Mapping[str, NDArray[Any]]
SEAL = "seal"


class CorruptError(UsageError):
    """A file that is not what was written: cut short, damaged, or not to be read."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path} is damaged ({why}): run its sweep again, which sets it aside and makes it anew")
        self.path, self.why = path, why


def write_record(path: Path, record: Mapping[str, Any], indent: int | None = None) -> None:
    """A record as JSON with its seal, on one line unless indented; NaN and infinity are refused: JSON has neither."""
    write_text(path, json.dumps(sealed(record), indent=indent) + "\n")


def read_record(path: Path) -> dict[str, Any]:
    """The record; raises CorruptError when it is not what was written.  One from before seals is taken as it is."""
    try:
        return unsealed(dict(json.loads(path.read_bytes())))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CorruptError(path, str(error)) from error


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with its seal before all else."""
    return {SEAL: sha256(_canonical(record).encode())} | dict(record)


def unsealed(found: dict[str, Any]) -> dict[str, Any]:
    """The record in what `sealed` gave, or in one from before seals; raises ValueError for another than was sealed."""
    name = SEAL if SEAL in found else next(iter(found), SEAL)  # it is first: its name may be damaged
    record = {key: value for key, value in found.items() if key != name}
    if (found.get(name) == sha256(_canonical(record).encode())) != (SEAL in found):
        raise ValueError("its digest is another")
    return record if SEAL in found else found


def write_arrays(path: Path, arrays: Arrays, durable: bool = True) -> None:
    """Arrays as npz with their seal; the same arrays give the same bytes.  Raises TypeError for the name `file`."""
    write_atomically(path, lambda file: _save(file, arrays), durable)


def size_of(arrays: Arrays) -> int:
    """Bytes of the file that `write_arrays` would write."""
    file = BytesIO()
    _save(file, arrays)
    return file.tell()


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays; raises CorruptError when they are not what was written.  A file without a seal is taken as it is."""
    try:
        with open_npz(path) as found:
            arrays = dict(found)
    except UsageError as error:
        raise CorruptError(path, str(error)) from error
    seal = arrays.pop(SEAL, None)
    if seal is not None and not np.array_equal(seal, _digest(arrays)):
        raise CorruptError(path, "its digest is another")
    return arrays


def _save(file: BinaryIO, arrays: Arrays) -> None:
    np.savez(file, **arrays, **{SEAL: _digest(arrays)})


def _canonical(record: Mapping[str, Any]) -> str:
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _digest(arrays: Arrays) -> NDArray[np.uint8]:
    """Of names, types, shapes and contents, whatever the order: (32,)."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data if array.size else b"")
    return np.frombuffer(digest.digest(), np.uint8)
