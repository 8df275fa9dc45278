"""Results of one sweep from several machines, put together in a new folder."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from bench.errors import UsageError
from bench.files import nearest_folder, write_json, write_text
from bench.log import NAME, RunLog, read_log
from bench.sealed import read_arrays, read_record, write_record
from bench.store import Record, Store, content

AXES = ("solvers", "nfe", "seed")  # in which runs may differ; a record names the others where a sweep has several
FILES = ("reference", "inception_weights", "tuned")  # which machines keep elsewhere: keys tell what was in them
NOTHING = "nothing"


@dataclass(frozen=True)
class Merged:
    """What became of some runs: cells done and wanted, unfinished cells with blocks, and measurements left out because
    an earlier run has some of the same cell."""

    runs: int
    done: int
    wanted: int
    begun: int
    left_out: int

    def __str__(self) -> str:
        begun = f", {self.begun} more begun" if self.begun else ""
        text = f"{self.runs} runs, {self.done} of {self.wanted} cells done{begun}"
        return text + f"; {self.left_out} measurements of cells that an earlier run measured left out" * bool(
            self.left_out
        )


def merge(folders: Sequence[Path], out: Path) -> Merged:
    """Put results folders together in a new one, which appears whole or not at all; reports are not written.

    Of what several have, the first's is taken.  Raises UsageError before anything is written: for runs of different
    sweeps, for cells that came out differently, for damaged files, and for a place that is not free.
    """
    _check_free(out)
    runs = list({folder.resolve(): Store(folder) for folder in folders}.values())
    definition = united({run.folder: run.definition() for run in runs})
    done = _records(runs)
    sidecars = _firsts(runs, (f"sidecars/{key}.npz" for key in done))
    measured = [path for run in runs for path in sorted((run.folder / "latency").glob("*.json"))]
    measurements = {f"latency/{path.name}": path for path in reversed(measured)}
    blocks = _firsts(runs, _blocks(runs, done))
    for path in [*sidecars.values(), *blocks.values()]:
        read_arrays(path)
    for path in measured:
        read_record(path)
    records = {f"cells/{key}.json": path for key, path in done.items()}
    _write(out, definition, records | sidecars | measurements | blocks, runs)
    begun = {Path(name).parent for name in blocks}
    return Merged(len(runs), len(done), len(definition["cells"]), len(begun), len(measured) - len(measurements))


def united(definitions: Mapping[Path, Record]) -> Record:
    """The definition of the sweep of which runs are parts, by their folders: it has all of their solvers, budgets and
    seeds, each with each.  Raises UsageError when they are parts of none, or a part is missing."""
    (folder, first), *others = definitions.items()
    for other, there in others:
        for name in {**first, **there}:
            if name not in (*AXES, *FILES, "cells") and first.get(name, NOTHING) != there.get(name, NOTHING):
                difference = _difference(first.get(name, NOTHING), there.get(name, NOTHING), name)
                raise UsageError(f"{folder} and {other} are of different sweeps: {difference}")
    parts = [[_values(folder, d, axis) for axis in AXES] for folder, d in definitions.items()]
    whole = [list(dict.fromkeys(value for part in parts for value in part[i])) for i in range(len(AXES))]
    there = {point for part in parts for point in product(*part)}
    if missing := [point for point in product(*whole) if point not in there]:
        solver, nfe, seed = missing[0]
        raise UsageError(
            f"these runs are no whole sweep: none has {solver} at {nfe} calls with seed {seed}; give it too"
        )
    cells: dict[str, Any] = {}
    for definition in definitions.values():
        cells |= {key: about for key, about in definition["cells"].items() if key not in cells}
    return first | dict(zip(AXES, whole, strict=True)) | {"cells": cells}


def _values(folder: Path, definition: Record, axis: str) -> list[Any]:
    values = definition.get(axis)
    if not isinstance(values, list) or not all(isinstance(value, str | int) for value in values):
        raise UsageError(f"{folder} is not a results folder: in its sweep.json {axis} is {values!r}, not a list")
    return values


def _records(runs: Sequence[Store]) -> dict[str, Path]:
    """The first record of each cell; raises UsageError when another run's says something else."""
    first: dict[str, Path] = {}
    for run in runs:
        for path in sorted((run.folder / "cells").glob("*.json")):
            record, there = read_record(path), first.setdefault(path.stem, path)
            if there != path and content(record) != content(other := read_record(there)):
                difference = _difference(content(other), content(record))
                raise UsageError(f"{there} and {path} are of the same cell and differ: {difference}")
    return first


def _blocks(runs: Sequence[Store], done: Mapping[str, Path]) -> list[str]:
    """Names of the blocks of cells that no run has finished."""
    found = [path.relative_to(run.folder) for run in runs for path in sorted(run.folder.glob("chunks/*/*.npz"))]
    return [str(name) for name in found if name.parent.name not in done]


def _firsts(runs: Sequence[Store], names: Iterable[str]) -> dict[str, Path]:
    """The first file of each name, where there is one."""
    wanted = [(name, [path for run in runs if (path := run.folder / name).exists()]) for name in names]
    return {name: paths[0] for name, paths in wanted if paths}


def _difference(one: Any, other: Any, at: str = "") -> str:
    """Where two values that differ do so first."""
    pairs: list[tuple[Any, Any, Any]] = []
    if isinstance(one, dict) and isinstance(other, dict):
        pairs = [(name, one.get(name, NOTHING), other.get(name, NOTHING)) for name in {**one, **other}]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = list(zip(range(len(one)), one, other, strict=True))
    for name, a, b in pairs:
        if a != b:
            return _difference(a, b, f"{at}.{name}" if at else str(name))
    return f"{at} is {one!r} in one and {other!r} in the other"


def _check_free(out: Path) -> None:
    """Raises UsageError unless the place is new or an empty folder."""
    if nearest_folder(out) == out and any(out.iterdir()):
        raise UsageError(f"--out {out} holds files: give a new or empty folder")


def _write(out: Path, definition: Record, files: Mapping[str, Path], runs: Sequence[Store]) -> None:
    """A results folder with copies of files; raises UsageError where none can be made."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    except OSError as error:
        raise UsageError(f"--out {out} is not writable: {error.strerror}") from error
    try:
        for name, path in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name)
        _write_lists(folder, runs)
        write_record(folder / "sweep.json", definition, indent=1)  # last: without it this is no results folder
        os.chmod(folder, 0o755)  # mkdtemp's 0700 would keep others from reading results
        os.sync()  # once, since a wait for the disk a file takes hours of a hundred thousand
        folder.rename(out)
    except BaseException:
        shutil.rmtree(folder)
        raise


def _write_lists(folder: Path, runs: Sequence[Store]) -> None:
    """What only grows: commands, failures, and the log."""
    write_json(folder / "runs.json", _in_order((run.runs() for run in runs), "started"))
    for key in sorted({path.stem for run in runs for path in (run.folder / "attempts").glob("*.json")}):
        failures = _in_order((run.failures(key) for run in runs), "when")
        write_json(folder / "attempts" / f"{key}.json", failures)
    entries = _in_order((read_log(run.folder) for run in runs), "time")
    write_text(folder / NAME, "".join(json.dumps(entry) + "\n" for entry in entries))
    RunLog(folder).write("merged", runs=[run.folder for run in runs])


def _in_order(lists: Iterable[list[Record]], when: str) -> list[Record]:
    """All entries of some lists, each once, oldest first."""
    found = {json.dumps(entry, sort_keys=True): entry for entries in lists for entry in entries}
    return sorted(found.values(), key=lambda entry: str(entry.get(when, "")))
