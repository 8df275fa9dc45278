"""From what people give to results: the jobs of a sweep, one a checkpoint, checked together and run one by one."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.causes import cause_of
from bench.errors import UsageError
from bench.executors.local import Failure
from bench.files import sha256
from bench.pngs import exporter, file_name
from bench.progress import run_job
from bench.runner import Job, prepare
from bench.spec import Sweep
from bench.sweepfile import read_sweeps


def prepare_all(
    file: Path | None, given: Mapping[str, Any], device: str, out: Path | None, batch: int | None
) -> tuple[Job, ...]:
    """The checked sweeps of a file, or the default one, with what is `given` in place of its keys; writes nothing.

    One checkpoint's results go to `out`, those of several to a folder each in it.  Raises as `prepare`.
    """
    sweeps = read_sweeps(file, given)
    out = out or Path("results") / _usual_name(file, given, sweeps)
    if len(sweeps) == 1:
        return (prepare(sweeps[0], out, device, batch),)
    names = [_name(sweep) for sweep in sweeps]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"checkpoint: two of them would share the folder {out / twice[0]}: sweep them apart")
    if (out / "sweep.json").exists():
        raise UsageError(f"--out {out} holds results, and several checkpoints need a folder of folders: give another")
    return tuple(prepare(sweep, out / name, device, batch) for sweep, name in zip(sweeps, names, strict=True))


def run_all(jobs: Sequence[Job], command: str, png: Path | None, console: Console) -> list[Failure]:
    """Run what is left of checked sweeps and write their reports; returns what failed, which stops no other.

    With `png`, every new sample becomes a file in it.  Raises UsageError before anything is written, when that cannot
    take the samples or a folder is another's.
    """
    folders = [png / job.store.folder.name if len(jobs) > 1 else png for job in jobs] if png else []
    watchers = [exporter(folder, job.checkpoint) for folder, job in zip(folders, jobs, strict=bool(png))]
    for job in jobs:
        job.open()
    failures = []
    for i, job in enumerate(jobs):
        try:
            failures += run_job(job, command, watchers[i : i + 1], console)
        except Exception as error:
            if len(jobs) == 1:
                raise
            failures.append(Failure(job.checkpoint.name, cause_of(error)))
            console.print(f"failed: {failures[-1].label}: {failures[-1].cause}", style="red", markup=False)
    return failures


def _name(sweep: Sweep) -> str:
    return file_name(Path(sweep.checkpoint).name)


def _usual_name(file: Path | None, given: Mapping[str, Any], sweeps: Sequence[Sweep]) -> str:
    """The results folder's, if none is given: of another sweep than the file's, or the default one, another."""
    name = f"local-{file.stem if file else '-'.join(map(_name, sweeps))}"
    if given.keys() - (() if file else {"checkpoint"}):
        name += f"-{sha256(json.dumps(given, sort_keys=True, default=str).encode())[:6]}"
    return name
