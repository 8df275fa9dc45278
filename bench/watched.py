"""What a run is at, from its files alone: it can be seen from another machine, and when its processes are gone."""

import socket
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from bench.log import Entry, read_on
from bench.store import Store

ENDS = {"sweep_ended", "interrupted"}


@dataclass(frozen=True)
class Part:
    """A cell that is begun, and how many of its samples are there."""

    label: str
    done: int
    samples: int


@dataclass(frozen=True)
class State:
    """What a run is at; `failed` are labels with causes, `rate` is in network calls on single samples a second."""

    folder: Path
    checkpoint: str
    wanted: int
    done: int
    failed: tuple[tuple[str, str], ...]
    begun: tuple[Part, ...]
    live: bool  # a process works on it, as far as can be known
    measuring: bool
    rate: float | None
    seconds_left: float | None  # of sampling
    events: tuple[Entry, ...]

    @property
    def left(self) -> int:
        """Cells that neither are done nor failed."""
        return self.wanted - self.done - len(self.failed)


class Follower:
    """A store's state again and again; of its log only what is new is read."""

    def __init__(self, store: Store) -> None:
        """Raises UsageError when the folder is none of results."""
        self._store, self._definition = store, store.definition()
        self._entries: list[Entry] = []
        self._next = 0

    def state(self) -> State:
        new, self._next = read_on(self._store.folder, self._next)
        self._entries += new
        return _state(self._store, self._definition, self._entries)


def _state(store: Store, definition: Mapping[str, Any], entries: Sequence[Entry]) -> State:
    cells, samples = definition["cells"], definition.get("samples", 0)
    labels = {key: f"{solver} nfe={nfe or 'adaptive'}" for key, (solver, nfe) in cells.items()}
    done = _names(store.folder / "cells", ".json") & cells.keys()
    failed = sorted((_names(store.folder / "attempts", ".json") & cells.keys()) - done)
    begun = sorted((_names(store.folder / "chunks") & cells.keys()) - done - set(failed))
    parts = {key: Part(labels[key], _samples_in(store.folder / "chunks" / key), samples) for key in begun}
    live = [run for run in _runs(entries) if _goes_on(run)]
    calls = _calls(cells)
    rate = sum(_rate(run, calls) for run in live) or None
    left = sum(calls[key] * samples for key in cells.keys() - done - set(failed))
    left -= sum(calls[key] * part.done for key, part in parts.items())
    return State(
        store.folder, definition["checkpoint"], len(cells), len(done),
        tuple((labels[key], _cause(store, key)) for key in failed), tuple(parts.values()),
        bool(live), any(_measures(run) for run in live), rate, left / rate if rate else None, tuple(entries),
    )  # fmt: skip


def _names(folder: Path, suffix: str = "") -> set[str]:
    """What lies in a folder, without the suffix that all of it has; files that are being written begin with a dot."""
    try:
        return {p.name.removesuffix(suffix) for p in folder.iterdir() if p.name.endswith(suffix) and p.name[0] != "."}
    except OSError:
        return set()


def _samples_in(folder: Path) -> int:
    """Those in the blocks <first>-<count>.npz of a cell."""
    counts = [name.partition("-")[2] for name in _names(folder, ".npz")]
    return sum(int(count) for count in counts if count.isdecimal())


def _cause(store: Store, key: str) -> str:
    attempts = store.failures(key)
    return str(attempts[-1].get("cause")) if attempts else "unknown: its attempts cannot be read"


def _calls(cells: Mapping[str, Sequence[Any]]) -> dict[str, float]:
    """Network calls a sample of each cell; of those that choose their own, the mean of the others."""
    known = [nfe for _, nfe in cells.values() if nfe]
    return {key: nfe or sum(known) / max(1, len(known)) or 1.0 for key, (_, nfe) in cells.items()}


def _runs(entries: Sequence[Entry]) -> list[list[Entry]]:
    """The events of each command that ran here."""
    runs: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        runs[entry["run"]].append(entry)
    return list(runs.values())


def _goes_on(run: Sequence[Entry]) -> bool:
    """Whether a command has not said that it ended, and its process is there, or on a machine that is not ours."""
    if any(entry["event"] in ENDS for entry in run):
        return False
    host, _, process = str(run[0].get("process")).rpartition(":")
    if host != socket.gethostname() or not process.isdecimal():
        return True
    try:
        return psutil.Process(int(process)).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _measures(run: Sequence[Entry]) -> bool:
    said = [entry["event"] for entry in run if entry["event"].startswith("measuring_")]
    return bool(said) and said[-1] == "measuring_started"


def _rate(run: Sequence[Entry], calls: Mapping[str, float]) -> float:
    """Network calls a second from a command's start to its last block; 0 where it has none yet."""
    blocks = [e for e in run if e["event"] == "block_done" and e.get("key") in calls]
    if not blocks:
        return 0.0
    seconds = (datetime.fromisoformat(blocks[-1]["time"]) - datetime.fromisoformat(run[0]["time"])).total_seconds()
    work = sum(calls[block["key"]] * block.get("count", 0) for block in blocks)
    return work / seconds if seconds > 0 else 0.0  # a clock may have jumped
