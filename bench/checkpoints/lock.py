"""The lock: what was pulled, by name, with its digests, so that what changes at its source is noticed."""

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from bench.errors import UsageError
from bench.files import cache_folder, write_json


class FilePin(BaseModel):
    """A file's SHA-256 and size."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    bytes: int


class Pin(BaseModel):
    """What came from an address: a commit on the hub, the files, and the day."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    revision: str | None
    files: Mapping[str, FilePin]
    pulled: str


def default_lock() -> Path:
    """What this machine pulled."""
    return cache_folder() / "checkpoints" / "fewstep.lock"


def read_lock(path: Path) -> dict[str, Pin]:
    """The pins of a lock file by name, none where there is no file; raises UsageError for one that is no lock."""
    try:
        data = json.loads(path.read_text())
        return {str(name): Pin.model_validate(pin) for name, pin in data.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, ValidationError) as error:
        raise UsageError(f"{path} is no lock file of `fewstep pull`: give another --lock, or delete it") from error


def write_pin(path: Path, name: str, pin: Pin) -> None:
    """Keep a pin beside the others, in order of names; raises UsageError when the file cannot be written."""
    pins = read_lock(path) | {name: pin}
    try:
        write_json(path, {name: pins[name].model_dump() for name in sorted(pins)})
    except OSError as error:
        raise UsageError(f"lock {path} cannot be written: {error.strerror}") from error
