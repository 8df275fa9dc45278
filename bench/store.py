"""Results on disk: one immutable record a cell, written whole or not at all; failures beside them, never among them.

results/<run>/sweep.json            the definition, with nothing left to defaults
              cells/<key>.json      records of cells that are done
              sidecars/<key>.npz    their features and first images, so that metrics need no new sampling
              attempts/<key>.json   the causes of failures, newest last
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
from bench.files import write_atomically, write_json

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
        for place in (self.folder, *self.folder.parents):
            if place.exists():
                break
        if not place.is_dir():
            raise UsageError(f"--out {self.folder}: {place} is a file, not a folder")
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
        path = self.folder / "runs.json"
        write_json(path, [*(json.loads(path.read_text()) if path.exists() else []), run])

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
            try:
                yield json.loads(path.read_text())
            except ValueError as error:
                raise UsageError(f"{path} is corrupted: delete it and run the sweep again") from error

    def sidecar(self, key: str) -> dict[str, NDArray[Any]]:
        """The arrays kept beside a record; empty where they were not kept."""
        path = self._sidecar(key)
        return dict(np.load(path)) if path.exists() else {}

    def _cell(self, key: str) -> Path:
        return self.folder / "cells" / f"{key}.json"

    def _sidecar(self, key: str) -> Path:
        return self.folder / "sidecars" / f"{key}.npz"
