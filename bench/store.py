"""Results on disk: one immutable record a cell, written whole or not at all; failures beside them, never among them.

results/<run>/sweep.json            the definition, with nothing left to defaults
              cells/<key>.json      records of cells that are done
              sidecars/<key>.npz    their features and first images, so that metrics need no new sampling
              latency/<key>.json    measurements of cells that are done: time is the machine's, not the cell's
              attempts/<key>.json   the causes of failures, newest last
              session.json          the finished rounds of a measuring session that goes on or was cut off
              runs.json             the commands that ran here, with versions, device and commit
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.errors import UsageError
from bench.files import nearest_folder, write_atomically, write_json

Record = dict[str, Any]


@dataclass(frozen=True)
class Store:
    """A results folder."""

    folder: Path

    @property
    def cache(self) -> Path:
        """Where metrics keep what they computed once for the whole run."""
        return self.folder / "sidecars"

    def definition(self) -> dict[str, Any]:
        """The sweep this folder was made by; raises UsageError when it holds none."""
        try:
            definition = json.loads((self.folder / "sweep.json").read_text())
        except (OSError, ValueError) as error:
            raise UsageError(f"{self.folder} is not a results folder: no readable sweep.json in it") from error
        if not isinstance(definition, dict) or not {"checkpoint", "digest", "cells"} <= definition.keys():
            raise UsageError(f"{self.folder} is not a results folder: its sweep.json is no definition")
        return definition

    def check(self, definition: Mapping[str, Any]) -> None:
        """Raise UsageError, writing nothing, unless the folder is new, empty, or made by the same definition."""
        place = nearest_folder(self.folder)
        if not (self.folder / "sweep.json").exists():
            if place == self.folder and any(not path.name.startswith(".") for path in place.iterdir()):
                raise UsageError(f"--out {self.folder} holds other files and no sweep.json: give a new or empty folder")
            return
        there = self.definition()
        if different := [k for k in {**there, **definition} if there.get(k) != definition.get(k)]:
            key = different[0]
            if key == "cells":
                raise UsageError(f"--out {self.folder} holds other cells: a solver changed; give another folder")
            raise UsageError(
                f"--out {self.folder} was made by another sweep: its {key} is {there.get(key)!r}, "
                f"not {definition.get(key)!r}; give another folder"
            )

    def open(self, definition: Mapping[str, Any]) -> None:
        """Make the folder this sweep's; raises UsageError when it is another's or cannot be written."""
        self.check(definition)
        try:
            if not (self.folder / "sweep.json").exists():
                write_json(self.folder / "sweep.json", definition)
            (self.folder / "cells").mkdir(exist_ok=True)
            probe = self.folder / "cells" / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UsageError(f"--out {self.folder} is not writable: {error.strerror}") from error

    def log_run(self, run: Record) -> None:
        """Note that a command ran on this folder, after those before."""
        write_json(self.folder / "runs.json", [*self.runs(), run])

    def runs(self) -> list[Record]:
        """The commands that ran here, oldest first."""
        path = self.folder / "runs.json"
        return list(json.loads(path.read_text())) if path.exists() else []

    def has(self, key: str) -> bool:
        return self._cell(key).exists()

    def put(self, key: str, record: Record, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep a finished cell: the sidecar first, so that a record never stands without it."""
        write_atomically(self._sidecar(key), lambda file: np.savez(file, **arrays))
        write_json(self._cell(key), record)

    def put_failure(self, key: str, attempt: Record) -> None:
        """Keep why a cell failed, after the failures before."""
        write_json(self.folder / "attempts" / f"{key}.json", [*self.failures(key), attempt])

    def failures(self, key: str) -> list[Record]:
        path = self.folder / "attempts" / f"{key}.json"
        return list(json.loads(path.read_text())) if path.exists() else []

    def records(self) -> Iterator[Record]:
        """Every finished cell's record, by key; raises UsageError for a corrupted one."""
        for path in sorted((self.folder / "cells").glob("*.json")):
            yield _read(path)

    def put_measurement(self, key: str, measurement: Record) -> None:
        """Keep what a finished cell costs on a machine."""
        write_json(self._measurement(key), measurement)

    def measured(self, key: str) -> bool:
        return self._measurement(key).exists()

    def measurements(self) -> dict[str, Record]:
        """Every measurement, by its cell's key; raises UsageError for a corrupted one."""
        return {path.stem: _read(path) for path in sorted((self.folder / "latency").glob("*.json"))}

    def session(self) -> Record | None:
        """The measuring session that was cut off; raises UsageError when it is corrupted."""
        return _read(self._session) if self._session.exists() else None

    def put_session(self, session: Record) -> None:
        write_json(self._session, session)

    def drop_session(self) -> None:
        self._session.unlink()

    def sidecar(self, key: str) -> dict[str, NDArray[Any]]:
        """The arrays kept beside a record; empty where they were not kept."""
        path = self._sidecar(key)
        return dict(np.load(path)) if path.exists() else {}

    def _cell(self, key: str) -> Path:
        return self.folder / "cells" / f"{key}.json"

    def _sidecar(self, key: str) -> Path:
        return self.folder / "sidecars" / f"{key}.npz"

    def _measurement(self, key: str) -> Path:
        return self.folder / "latency" / f"{key}.json"

    @property
    def _session(self) -> Path:
        return self.folder / "session.json"


def stores(folder: Path) -> list[Store]:
    """The results folder itself, or all of those in it, by name; raises UsageError when there is none."""
    found = sorted(path.parent for path in folder.rglob("sweep.json")) if folder.is_dir() else []
    if not found:
        raise UsageError(f"{folder} is not a results folder, and holds none: no sweep.json in it")
    return [Store(folder)] if folder in found else [Store(path) for path in found]


def _read(path: Path) -> Record:
    try:
        return dict(json.loads(path.read_text()))
    except ValueError as error:
        raise UsageError(f"{path} is corrupted: delete it and run the sweep again") from error
