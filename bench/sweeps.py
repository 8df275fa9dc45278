"""From what people give to results: the jobs of a sweep, one a checkpoint, checked together and run one by one."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.causes import cause_of
from bench.errors import UsageError
from bench.executors import How
from bench.executors.drive import Failure
from bench.files import no_room, sha256
from bench.pngs import file_name
from bench.progress import run_job
from bench.runner import Job, prepare
from bench.spec import Sweep
from bench.stopping import Interrupted, Stop, heeded
from bench.sweepfile import read_sweeps


def prepare_all(
    file: Path | None,
    given: Mapping[str, Any],
    device: str,
    out: Path | None,
    batch: int | None,
    how: How | None = None,
) -> tuple[Job, ...]:
    """The checked sweeps of a file, or the default one, with what is `given` in place of its keys; writes nothing.

    One checkpoint's results go to `out`, those of several to a folder each in it.  Raises as `prepare`.
    """
    sweeps, how = read_sweeps(file, given), how or How()
    out = out or Path("results") / _usual_name(file, given, sweeps)
    if len(sweeps) == 1:
        return (prepare(sweeps[0], out, device, batch, how),)
    names = [_name(sweep) for sweep in sweeps]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"checkpoint: two of them would share the folder {out / twice[0]}: sweep them apart")
    if os.path.exists(out / "sweep.json"):  # Path's own fails for names that no file can have
        raise UsageError(f"--out {out} holds results, and several checkpoints need a folder of folders: give another")
    hows = [replace(how, png=how.png and how.png / name) for name in names]
    return tuple(
        prepare(sweep, out / name, device, batch, way) for sweep, name, way in zip(sweeps, names, hows, strict=True)
    )


def run_all(jobs: Sequence[Job], command: str, console: Console, began: float) -> list[Failure]:
    """Run what is left of checked sweeps and write their reports; returns what failed, which stops no other.

    Raises UsageError before anything is sampled, when a folder is another's; Interrupted when a signal asked for an
    end, once what was begun is kept and it is said how to go on; OSError when a disk takes nothing more.
    """
    for job in jobs:
        job.start()  # first, since an engine that does not start must leave nothing behind
    for job in jobs:
        for error in job.open():
            line = f"set aside: {error.path} is damaged ({error.why}); what it held is made again"
            console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
    try:
        with heeded() as stop:
            return _run_each(jobs, command, console, stop, began)
    except Interrupted as interrupted:
        for job in jobs:
            job.log.write("interrupted", signal=str(interrupted))
        left = sum(len(job.pending) for job in jobs)
        line = f"stopped by {interrupted}: {left} cells left, nothing lost; to go on: {command}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
        raise
    finally:
        for job in jobs:
            job.close()


def _run_each(jobs: Sequence[Job], command: str, console: Console, stop: Stop, began: float) -> list[Failure]:
    failures = []
    for job in jobs:
        try:
            failures += run_job(job, command, console, stop, began)
        except Exception as error:
            if len(jobs) == 1 or no_room(error):
                raise
            failures.append(Failure(job.checkpoint.name, cause_of(error)))
            console.print(f"failed: {failures[-1].label}: {failures[-1].cause}", style="red", markup=False)
        began = time.perf_counter()
    return failures


def _name(sweep: Sweep) -> str:
    return file_name(Path(sweep.checkpoint).name)


def _usual_name(file: Path | None, given: Mapping[str, Any], sweeps: Sequence[Sweep]) -> str:
    """The results folder's, if none is given: of another sweep than the file's, or the default one, another."""
    name = f"local-{file.stem if file else '-'.join(map(_name, sweeps))}"
    if given.keys() - (() if file else {"checkpoint"}):
        name += f"-{sha256(json.dumps(given, sort_keys=True, default=str).encode())[:6]}"
    return name
