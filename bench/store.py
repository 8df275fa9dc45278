"""Results on disk: one immutable record a cell, written whole or not at all; failures beside them, never among them.

results/<run>/sweep.json            the definition, with nothing left to defaults
              cells/<key>.json      records of cells that are done
              sidecars/<key>.npz    their features or moments and first images, so that metrics need no new sampling
              latency/<key>.json    measurements of cells that are done: time is the machine's, not the cell's
              attempts/<key>.json   the causes of failures, newest last
              chunks/<key>/         samples' features of a cell that is not done, a file a block of samples
              session.json          the finished rounds of a measuring session that goes on or was cut off
              aside/                files that turned out to be damaged
              runs.json             the commands that ran here, with versions, device and commit
              log.jsonl             what happened, an event a line
              .claims               the locks of the processes that work here
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from bench.claims import Claims
from bench.errors import UsageError
from bench.files import nearest_folder, write_json
from bench.sealed import CorruptError, read_arrays, read_record, sealed, unsealed, write_arrays, write_record

Record = dict[str, Any]
Block = tuple[int, int]  # of samples: the first, and how many
VOLATILE = ("sampling", "environment", "finished")  # of a record: what another run of its cell may say otherwise


@dataclass(frozen=True)
class Store:
    """A results folder."""

    folder: Path

    @property
    def cache(self) -> Path:
        """Where metrics keep what they computed once for the whole run."""
        return self.folder / "sidecars"

    def definition(self) -> dict[str, Any]:
        """The sweep this folder was made by; raises UsageError when it holds none, CorruptError for a damaged one."""
        if not self._sweep.is_file():
            raise UsageError(f"{self.folder} is not a results folder: no sweep.json in it")
        definition = read_record(self._sweep)
        if not {"checkpoint", "digest"} <= definition.keys() or not isinstance(definition.get("cells"), dict):
            raise UsageError(f"{self.folder} is not a results folder: its sweep.json is no definition")
        return definition

    def check(self, definition: Mapping[str, Any]) -> None:
        """Raise UsageError, writing nothing, unless the folder is new, empty, or made by the same definition."""
        place = nearest_folder(self.folder)
        if not self._sweep.exists():
            if place == self.folder and any(not path.name.startswith(".") for path in place.iterdir()):
                raise UsageError(f"--out {self.folder} holds other files and no sweep.json: give a new or empty folder")
            return
        try:
            there = self.definition()
        except CorruptError:
            if self._keys() <= definition["cells"].keys():  # its cells tell whose it is
                return
            raise UsageError(f"--out {self.folder} holds other cells; give another folder") from None
        if different := [k for k in {**there, **definition} if there.get(k) != definition.get(k)]:
            key = different[0]
            if key == "cells":
                raise UsageError(f"--out {self.folder} holds other cells: a solver changed; give another folder")
            raise UsageError(
                f"--out {self.folder} was made by another sweep: its {key} is {there.get(key)!r}, "
                f"not {definition.get(key)!r}; give another folder"
            )

    def open(self, definition: Mapping[str, Any]) -> list[CorruptError]:
        """Make the folder this sweep's, and set aside what is damaged in it, which is returned.

        Raises UsageError when it is another's or cannot be written.
        """
        self.check(definition)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self.claims.hold("open"):
                damaged = self._all_damaged()
                for path in (self.folder / "chunks").glob("*"):
                    if self.has(path.name):  # whoever finished it was killed before its blocks were gone
                        self.drop_blocks(path.name)
                if not self._sweep.exists():  # first, since a folder with anything else is refused without it
                    write_record(self._sweep, definition, indent=1)
                (self.folder / "cells").mkdir(exist_ok=True)
            return damaged
        except OSError as error:
            raise UsageError(f"--out {self.folder} is not writable: {error.strerror}") from error

    @cached_property
    def claims(self) -> Claims:
        """Who works on which cell; of an opened folder."""
        return Claims(self.folder / ".claims")

    def log_run(self, run: Record) -> None:
        """Note that a command ran on this folder, after those before."""
        with self.claims.hold("runs.json"):
            self._append(self.folder / "runs.json", run)

    def runs(self) -> list[Record]:
        """The commands that ran here, oldest first."""
        return _listed(self.folder / "runs.json")

    def has(self, key: str) -> bool:
        return self._cell(key).exists()

    def put(self, key: str, record: Record, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep a finished cell: the sidecar first, so that a record never stands without it."""
        write_arrays(self._sidecar(key), arrays)
        write_record(self._cell(key), record)

    def put_failure(self, key: str, attempt: Record) -> None:
        """Keep why a cell failed, after the failures before."""
        self._append(self.folder / "attempts" / f"{key}.json", attempt)

    def failures(self, key: str) -> list[Record]:
        return _listed(self.folder / "attempts" / f"{key}.json")

    def records(self) -> Iterator[Record]:
        """Every finished cell's record, by key; raises CorruptError for a damaged one."""
        for path in sorted((self.folder / "cells").glob("*.json")):
            yield read_record(path)

    def put_block(self, key: str, block: Block, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep what a block of a cell's samples gave, until the cell is finished."""
        write_arrays(self._block(key, block), arrays, durable=False)

    def has_block(self, key: str, block: Block) -> bool:
        return self._block(key, block).exists()

    def block(self, key: str, block: Block) -> dict[str, NDArray[Any]]:
        """Raises CorruptError when it is damaged or gone."""
        return read_arrays(self._block(key, block))

    def drop_blocks(self, key: str) -> None:
        shutil.rmtree(self.folder / "chunks" / key, ignore_errors=True)
        with suppress(OSError):  # others are there
            (self.folder / "chunks").rmdir()

    def put_measurement(self, key: str, measurement: Record) -> None:
        """Keep what a finished cell costs on a machine."""
        write_record(self._measurement(key), measurement)

    def measured(self, key: str) -> bool:
        return self._measurement(key).exists()

    def measurements(self) -> dict[str, Record]:
        """Every measurement, by its cell's key; raises CorruptError for a damaged one."""
        return {path.stem: read_record(path) for path in sorted((self.folder / "latency").glob("*.json"))}

    def session(self) -> Record | None:
        """The measuring session that was cut off; raises CorruptError when it is damaged."""
        return read_record(self._session) if self._session.exists() else None

    def put_session(self, session: Record) -> None:
        write_record(self._session, session)

    def drop_session(self) -> None:
        self._session.unlink()

    def sidecar(self, key: str) -> dict[str, NDArray[Any]]:
        """The arrays kept beside a record; empty where they were not kept.  Raises CorruptError."""
        path = self._sidecar(key)
        return read_arrays(path) if path.exists() else {}

    def set_aside(self, path: Path) -> None:
        """Move a damaged file where it is out of the way, beside those of its name that were damaged before."""
        aside = self.folder / "aside"
        aside.mkdir(exist_ok=True)
        name = "-".join(path.relative_to(self.folder).parts)
        number = sum(1 for other in aside.iterdir() if other.name.startswith(name))
        path.rename(aside / f"{name}.{number}")  # under which no reader takes it for what it was

    def _all_damaged(self) -> list[CorruptError]:
        """Set aside all damaged files, and records whose sidecars are: their cells are to be run again."""
        found = []
        for key in sorted(self._keys()):
            found += self._damaged([self._sidecar(key), self._cell(key)], both=True)
        for path in [self._sweep, *sorted((self.folder / "latency").glob("*.json")), self._session]:
            found += self._damaged([path])
        return found

    def _damaged(self, paths: list[Path], both: bool = False) -> list[CorruptError]:
        """Those of the paths that are damaged, now set aside; with `both`, all of them as soon as one is."""
        there, found = [path for path in paths if path.exists()], []
        for path in there:
            try:
                (read_arrays if path.suffix == ".npz" else read_record)(path)
            except CorruptError as error:
                found.append(error)
        for path in there if found and both else [error.path for error in found]:
            self.set_aside(path)
        return found

    def _append(self, path: Path, entry: Record) -> None:
        """To a list that only grows; a damaged one is set aside."""
        there = _listed(path)
        if not there and path.exists():
            self.set_aside(path)
        write_json(path, [sealed(each) for each in (*there, entry)])

    def _keys(self) -> set[str]:
        return {path.stem for path in (self.folder / "cells").glob("*.json")}

    @property
    def _sweep(self) -> Path:
        return self.folder / "sweep.json"

    def _cell(self, key: str) -> Path:
        return self.folder / "cells" / f"{key}.json"

    def _sidecar(self, key: str) -> Path:
        return self.folder / "sidecars" / f"{key}.npz"

    def _measurement(self, key: str) -> Path:
        return self.folder / "latency" / f"{key}.json"

    def _block(self, key: str, block: Block) -> Path:
        return self.folder / "chunks" / key / f"{block[0]}-{block[1]}.npz"

    @property
    def _session(self) -> Path:
        return self.folder / "session.json"


def stores(folder: Path) -> list[Store]:
    """The results folder itself, or all of those in it, by name; raises UsageError when there is none."""
    found = sorted(path.parent for path in folder.rglob("sweep.json")) if os.path.isdir(folder) else []
    if not found:
        raise UsageError(f"{folder} is not a results folder, and holds none: no sweep.json in it")
    return [Store(folder)] if folder in found else [Store(path) for path in found]


def content(record: Record) -> Record:
    """What every run of a record's cell says, on whatever machine, by whatever engine."""
    return {name: value for name, value in record.items() if name not in VOLATILE}


def _listed(path: Path) -> list[Record]:
    """The entries of a list that only grows; of a damaged one none, since nothing else rests on them."""
    try:
        return [unsealed(entry) for entry in json.loads(path.read_bytes())]
    except (OSError, ValueError, TypeError, AttributeError):
        return []
