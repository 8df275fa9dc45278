"""Letting methods learn from a checkpoint: one file a budget and guidance scale, each written whole, none twice.

<out>/<checkpoint>/<method>/nfe10-cfg1.json   what was learned, with its cost (solvers/learned.py)
                            .nfe10-cfg1.notes where an interrupted tuning goes on
                            runs.json         the commands that ran here, with versions, device and commit
"""

import dataclasses
import json
import pickle
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import solvers
from bench.checkpoints import Checkpoint, Guide, Task, load
from bench.checkpoints.prompts import Prompts, read_prompts
from bench.environment import environment
from bench.errors import UsageError
from bench.files import nearest_folder, write_atomically, write_json
from bench.metrics import Chunk, Context, find_metric, make_metric
from bench.mode import Mode
from bench.runner import find_device
from bench.words import parse
from solvers import noise
from solvers.learned import Learned, LearnedError, file_stem, read
from solvers.tune import Problem, Tuner, tuner


@dataclass(frozen=True)
class FileNotes:
    """A tuner's notes in a file, with the denoiser's counters, which go on too; `about` says whose notes they are."""

    path: Path
    denoiser: solvers.Denoiser
    about: dict[str, Any]

    def read(self) -> dict[str, Any] | None:
        """Raises UsageError when the notes are of a tuning with other settings."""
        if not self.path.exists():
            return None
        try:
            kept = torch.load(self.path, weights_only=True)
            about, counters, state = kept["about"], kept["counters"], kept["state"]
        except (OSError, KeyError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise UsageError(f"{self.path} are no notes of a tuning: delete them") from error
        if different := [k for k in self.about if about.get(k) != self.about[k]]:
            key = different[0]
            raise UsageError(
                f"{self.path} is of an unfinished tuning with {key} {about.get(key)!r}, not {self.about[key]!r}: "
                "finish or delete it"
            )
        for name, count in counters.items():
            setattr(self.denoiser, name, count)
        found: dict[str, Any] = state
        return found

    def write(self, state: dict[str, Any]) -> None:
        counters = {k: getattr(self.denoiser, k) for k in ("passed", "tangents", "backwards")}
        buffer = BytesIO()
        torch.save({"about": self.about, "counters": counters, "state": state}, buffer)
        write_atomically(self.path, lambda file: file.write(buffer.getvalue()))


@dataclass(frozen=True)
class Done:
    """One thing learned, where it lies, and the seconds it took: None where it was there already."""

    learned: Learned
    path: Path
    seconds: float | None


@dataclass(frozen=True)
class Refused:
    """A budget that the method cannot be tuned for, and why."""

    label: str
    why: str


@dataclass(frozen=True)
class Tuning:
    """A checked command: what is to be learned, of which checkpoint, into which folder."""

    tuner: Tuner
    settings: dict[str, solvers.Option]
    checkpoint: Checkpoint
    targets: tuple[tuple[int | None, float], ...]
    seed: int
    classes: tuple[int, ...] | None
    prompts: Prompts | None
    metric: str | None
    dtype: torch.dtype
    device: torch.device
    folder: Path

    def task(self, guidance: float) -> Task:
        """What the checkpoint is asked for while a method learns."""
        return Task(Guide(guidance), self.classes, self.prompts)

    def problem(self, guidance: float) -> Problem:
        """The checkpoint as a tuner sees it, on noise that no evaluation uses."""
        task = self.task(guidance)
        denoiser = self.checkpoint.denoiser(task, self.device, self.dtype)

        def start(first: int, count: int, t: float) -> tuple[Tensor, dict[str, Tensor]]:
            x_T = self.checkpoint.latents(self.seed, first, count, t, noise.TUNING)
            cond = self.checkpoint.conditions(task, self.seed, first, count, self.device, noise.TUNING)
            return x_T.to(self.device, self.dtype), cond

        metric = (self.metric, self._distance(guidance)) if self.metric else None
        return Problem(denoiser, guidance, self.checkpoint.shape, self.seed, start, metric)

    def _distance(self, guidance: float) -> Any:
        """The metric's first number of final states x (B, *shape)."""
        assert self.metric is not None
        context = Context(self.checkpoint, self.seed, self.task(guidance), self.folder, self.device)
        measure = make_metric(self.metric, context)

        def distance(x: Tensor) -> float:
            chunk = Chunk.of(0, x, self.checkpoint)
            return float(measure.compute(measure.extract(chunk), ())[0].value)

        return distance

    def about(self) -> dict[str, Any]:
        """What a file here must have been learned with, to be what this command would learn."""
        classes = {"classes": " ".join(map(str, self.classes))} if self.classes else {}
        prompts = {"prompts": self.prompts.digest} if self.prompts else {}
        metric = {"metric": self.metric} if self.metric else {}
        settings = self.settings | classes | prompts | metric
        return {"digest": self.checkpoint.digest, "seed": self.seed, "settings": settings}

    def run(self, command: str) -> Iterator[Done | Refused]:
        """Learn what is not there yet, one target after another, noting the command."""
        logged = False
        for nfe, guidance in self.targets:
            path = self.folder / f"{file_stem(nfe, guidance)}.json"
            if path.exists():
                yield Done(read(path), path, None)
                continue
            begin, problem = time.perf_counter(), self.problem(guidance)
            notes = FileNotes(path.parent / f".{path.stem}.notes", problem.denoiser, self.about())
            try:
                finding = self.tuner.tune(problem, nfe, notes, self.settings)
            except UsageError:
                raise
            except ValueError as error:
                yield Refused(path.stem, str(error))
                continue
            learned = Learned(
                self.tuner.name, self.checkpoint.name, self.checkpoint.digest, self.checkpoint.schedule, nfe, guidance,
                finding.base, finding.objective, self.seed, self.about()["settings"], problem.cost, finding.curve,
                finding.values, finding.arrays,
            )  # fmt: skip
            if not logged:
                self._log(command)
                logged = True
            for name, data in learned.to_files().items():
                write_atomically(self.folder / name, lambda file, data=data: file.write(data))
            notes.path.unlink(missing_ok=True)
            yield Done(read(path), path, time.perf_counter() - begin)

    def _log(self, command: str) -> None:
        path = self.folder / "runs.json"
        run = {"command": command, "finished": datetime.now(UTC).isoformat(timespec="seconds")}
        before = json.loads(path.read_text()) if path.exists() else []
        write_json(path, [*before, run | {"environment": environment(self.device)}])


def prepare(
    method: str,
    checkpoint: str,
    nfe: Sequence[int],
    guidance: Sequence[float],
    seed: int,
    classes: Sequence[int] | None,
    prompts: Path | None,
    metric: str | None,
    precision: str,
    device: str,
    out: Path,
) -> Tuning:
    """Check everything that can be checked before a network call, writing nothing.

    Raises UsageError and solvers.UnknownNameError.
    """
    name, given = parse("solver", method)
    found = tuner(name)
    try:
        settings = found.resolve(given)
    except ValueError as error:
        raise UsageError(str(error)) from error
    loaded = load(checkpoint)
    _check_values(nfe, seed, metric, precision)
    budgets: Sequence[int | None] = [None] if found.any_budget else list(dict.fromkeys(nfe))
    tuning = Tuning(
        found, settings, loaded, tuple((n, g) for g in dict.fromkeys(guidance) for n in budgets), seed,
        tuple(sorted(set(classes))) if classes else None, read_prompts(prompts) if prompts else None, metric,
        Mode(precision).states, find_device(device), out / loaded.name / found.name,
    )  # fmt: skip
    for _, scale in tuning.targets:
        loaded.check(tuning.task(scale))
    _check_folder(tuning)
    return tuning


def _check_values(nfe: Sequence[int], seed: int, metric: str | None, precision: str) -> None:
    """Raise UsageError for what no tuning can be asked."""
    if not 0 <= seed < 2**63:
        raise UsageError(f"--seed {seed}: give a whole number from 0 to 2^63 - 1")
    if bad := [n for n in nfe if n < 1]:
        raise UsageError(f"--nfe {bad[0]}: give budgets of at least 1 call")
    if precision not in ("fp32", "fp64"):
        raise UsageError(f"--precision {precision}: methods learn in fp32 or fp64")
    if metric is not None and find_metric(metric)[0].of_ode:
        raise UsageError(f"--metric {metric}: that is what is searched for anyway; give a distance of distributions")


def _check_folder(tuning: Tuning) -> None:
    """Raise UsageError where the folder cannot be written, or what lies there was learned in another way."""
    nearest_folder(tuning.folder)
    for nfe, guidance in tuning.targets:
        path = tuning.folder / f"{file_stem(nfe, guidance)}.json"
        if not path.exists():
            continue
        try:
            there = dataclasses.asdict(read(path))
        except LearnedError as error:
            raise UsageError(str(error)) from error
        for key, wanted in tuning.about().items():
            if there[key] != wanted:
                raise UsageError(
                    f"{path} was learned with {key} {there[key]!r}, not {wanted!r}: delete it or give another --out"
                )
