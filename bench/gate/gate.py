"""The gate: one check for each thing that a baseline holds, which computes what it needs when it is run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from bench.causes import cause_of
from bench.environment import environment
from bench.errors import UsageError
from bench.gate.baseline import Baseline, Past, PastSweep, Recording, Settings
from bench.gate.facts import cell_fault, quality_fault
from bench.gate.golden import error_of
from bench.gate.measured import Measured, definition, use_threads
from bench.gate.speed import Slowness, slowness
from bench.runner import find_device
from bench.spec import Sweep
from bench.sweepfile import read_sweeps
from solvers import UnknownNameError

Kind = Literal["plan", "quality", "speed", "golden"]
ROUNDING = 1e-9  # of the size of what was recorded, that an error against it may move by
FARTHER = 1.15  # the factor that ratios may worsen by on a machine that is not the baseline's


@dataclass(frozen=True)
class Verdict:
    """What a check found, in a word or two; `fault` is one line where it fails."""

    said: str
    fault: str = ""


@dataclass(frozen=True)
class Check:
    """Something that a baseline holds, of a cell or a recording; `trajectory` makes what is timed, where it is."""

    subject: str
    kind: Kind
    find: Callable[[], Verdict]
    trajectory: Callable[[], Callable[[], object]] | None = None

    @cached_property
    def verdict(self) -> Verdict:
        """What is found; what cannot be computed any more fails with its cause."""
        try:
            return self.find()
        except Exception as error:  # whatever one cell does, the other checks are worth having
            return Verdict("failed", " ".join(cause_of(error).split()))


class Swept:
    """The checks of one sweep's cells, which share a session of timing."""

    def __init__(self, name: str, past: PastSweep, measured: Measured, settings: Settings) -> None:
        self.name, self.past, self.measured, self.settings = name, past, measured, settings

    def checks(self) -> Iterator[Check]:
        """Of every cell that the baseline has or the sweep now gives."""
        for label in self.past.cells:
            yield Check(f"{self.name} {label}", "plan", partial(self._plan, label))
            if label in self.measured.cells:
                yield Check(f"{self.name} {label}", "quality", partial(self._quality, label))
            if label in self._timed:
                yield Check(
                    f"{self.name} {label}",
                    "speed",
                    partial(self._speed, label),
                    partial(self.measured.trajectory, label),
                )
        for label in self.measured.cells:
            if label not in self.past.cells:
                yield Check(
                    f"{self.name} {label}",
                    "plan",
                    lambda: Verdict("new", "it is not in the baseline: --update records it"),
                )

    def _plan(self, label: str) -> Verdict:
        past = self.past.cells[label]
        if label not in self.measured.cells:
            return Verdict("gone", "it is in the baseline, and no longer a cell of the sweep")
        if fault := cell_fault(past, self.measured.planned(label)):
            return Verdict("changed", fault)
        if past.nfe is not None and (fault := self.measured.execution_fault(label, past.plan)):
            return Verdict("runs otherwise", fault)
        return Verdict("same")

    def _quality(self, label: str) -> Verdict:
        past, now = self.past.cells[label], self.measured.sampled(label)
        name, old = next(iter(past.values.items()))
        said = f"{now.values[name].value:.4g} of {old.value:.4g}" if name in now.values else "other numbers"
        return Verdict(said, quality_fault(past, now, self.settings))

    def _speed(self, label: str) -> Verdict:
        found = self._slowness[label]
        return Verdict(f"{found.now:.2f} of {found.before:.2f}", found.fault)

    @property
    def _timed(self) -> dict[str, Past]:
        return {k: cell for k, cell in self.past.cells.items() if cell.ratios and k in self.measured.cells}

    @cached_property
    def _slowness(self) -> dict[str, Slowness]:
        """Of all cells in one session; those that fail in it are measured once more, in another."""
        found = self._session(self._timed)
        return found | self._session({k: self._timed[k] for k, slow in found.items() if slow.fault})

    def _session(self, timed: Mapping[str, Past]) -> dict[str, Slowness]:
        if not timed:
            return {}
        session = self.measured.session({label: cell.plan for label, cell in timed.items()})
        return slowness(timed, session, self.settings.slower)


@dataclass(frozen=True)
class Gate:
    """A baseline on this machine; with `files`, sweeps by name, only these, which must be as they were."""

    baseline: Baseline
    device: str = "auto"
    files: Mapping[str, Sweep] | None = None

    @cached_property
    def note(self) -> str:
        """What is to be said where this machine is not the baseline's; "" where it is."""
        here, there = str(environment(find_device(self.device))["device"]), self.baseline.device
        more = f"speed ratios may worsen by {FARTHER - 1:.0%} before they fail"
        return "" if here == there else f"the baseline was recorded on {there}, and this is {here}: {more}"

    def checks(self, scratch: Path) -> list[Check]:
        """Every check; nothing is sampled or timed before one is run.  Raises UsageError."""
        settings = self.baseline.settings
        if self.note:
            settings = settings.model_copy(update={"slower": max(settings.slower, FARTHER)})
        use_threads(settings.threads)
        found = [Check(n, "golden", partial(_golden, n, r)) for n, r in self.baseline.recordings.items()]
        for name, past in self._sweeps().items():
            folder = scratch / str(len(found))
            sweep = sweep_of(name, past.definition)
            try:
                measured = Measured(sweep, self.device, settings.threads, folder)
            except (UsageError, UnknownNameError) as error:  # what was recorded cannot be planned any more
                gone = Verdict("gone", str(error))
                found.append(Check(name, "plan", lambda gone=gone: gone))
            else:
                found += Swept(name, past, measured, settings).checks()
        return found

    def _sweeps(self) -> dict[str, PastSweep]:
        """Those to check."""
        recorded = self.baseline.sweeps
        for name, sweep in (self.files or {}).items():
            if name not in recorded:
                has = ", ".join(recorded) or "none"
                raise UsageError(f"the baseline has no sweep {name!r}, but {has}: --update records it")
            there, here = recorded[name].definition, definition(sweep)
            if different := [k for k in {**here, **there} if here.get(k) != there.get(k)]:
                k = different[0]
                was = f"{k} is {here.get(k, 'not given')!r}, in the baseline {there.get(k, 'not given')!r}"
                raise UsageError(f"sweep {name}: {was}: --update records it")
        return {name: past for name, past in recorded.items() if self.files is None or name in self.files}


def named(files: Sequence[Path]) -> dict[str, Sweep]:
    """The sweeps of these files, by the names that a baseline knows them by; raises UsageError."""
    found: dict[str, Sweep] = {}
    for file in files:
        sweeps = read_sweeps(file, {})
        for sweep in sweeps:
            name = f"{file.stem}-{Path(sweep.checkpoint).name}" if len(sweeps) > 1 else file.stem
            if name in found:
                raise UsageError(f"{file}: another file gives a sweep {name!r} too, which is its name in the baseline")
            found[name] = sweep
    return found


def sweep_of(name: str, kept: Mapping[str, Any]) -> Sweep:
    """The sweep that a baseline keeps; raises UsageError for what is none."""
    try:
        return Sweep.model_validate(kept)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"the baseline's sweep {name}: {first['loc'][0]}: {first['msg']}") from error


def _golden(name: str, recording: Recording) -> Verdict:
    """Whether our plan is as far from a recording as it was."""
    error, size = error_of(name, recording)
    fault = f"error against {recording.source} {recording.error:.2g} became {error:.2g}"
    same = recording.error is not None and abs(error - recording.error) <= ROUNDING * size
    return Verdict(f"{error:.0e}", "" if same else fault)
