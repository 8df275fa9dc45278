"""A new baseline, and what it changes."""

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.causes import cause_of
from bench.environment import environment
from bench.errors import UsageError
from bench.gate.baseline import Baseline, Change, Past, PastSweep, Recording, Settings
from bench.gate.facts import cell_fault, quality_fault
from bench.gate.gate import sweep_of
from bench.gate.golden import error_of
from bench.gate.measured import Measured, definition, use_threads
from bench.gate.speed import SESSIONS, Session
from bench.runner import find_device
from bench.spec import Sweep

OnStep = Callable[[str], None]


def update(
    before: Baseline | None,
    sweeps: Mapping[str, Sweep],
    recordings: Mapping[str, Recording],
    reason: str,
    device: str,
    on_step: OnStep,
) -> Baseline:
    """The baseline with these sweeps and recordings, by name, in place of or beside its own; all are made anew.

    Raises UsageError where something cannot be recorded.
    """
    old = before or Baseline()
    asked = {name: sweep_of(name, past.definition) for name, past in old.sweeps.items()} | dict(sweeps)
    if not asked:
        raise UsageError("a new baseline needs sweeps: fewstep gate SWEEP.yaml --baseline FILE --update --reason TEXT")
    use_threads(old.settings.threads)
    with TemporaryDirectory(prefix="fewstep-gate-") as scratch:
        found = {
            name: _recorded(name, Measured(sweep, device, old.settings.threads, Path(scratch) / str(k)), on_step)
            for k, (name, sweep) in enumerate(asked.items())
        }
    held = {
        name: recording.model_copy(update={"error": float(f"{error_of(name, recording)[0]:.3g}")})
        for name, recording in {**old.recordings, **recordings}.items()
    }
    about = environment(find_device(device))
    new = Baseline(settings=old.settings, sweeps=found, recordings=held)
    change = Change(
        when=datetime.now(UTC).isoformat(timespec="seconds"), reason=reason, commit=about["commit"],
        device=about["device"], changed=tuple(_changes(before, new)) if before else (),
    )  # fmt: skip
    return new.model_copy(update={"history": (*old.history, change)})


def _recorded(name: str, measured: Measured, on_step: OnStep) -> PastSweep:
    """The sweep's cells with their numbers, and the ratios of several sessions."""
    found: dict[str, Past] = {}
    for label in measured.cells:
        on_step(f"{name} {label}")
        try:
            found[label] = measured.sampled(label)
        except Exception as error:
            raise UsageError(f"{name} {label} cannot be recorded: {cause_of(error)}") from error
        if found[label].nfe is not None and (fault := measured.execution_fault(label, found[label].plan)):
            raise UsageError(f"{name} {label} cannot be recorded: {fault}")
    programs = {label: past.plan for label, past in found.items() if past.nfe is not None}
    sessions: list[dict[str, Session]] = []
    for k in range(SESSIONS):
        on_step(f"{name}, timing, session {k + 1} of {SESSIONS}")
        sessions.append(measured.session(programs))
    timed = {label: tuple(each[label].ratios for each in sessions) for label in programs}
    cells = {label: past.model_copy(update={"ratios": timed.get(label, ())}) for label, past in found.items()}
    return PastSweep(definition=definition(measured.sweep), cells=cells)


def _changes(old: Baseline, new: Baseline) -> Iterator[str]:
    """One line for each cell and recording that is not what it was; ratios are of a moment, and change always."""
    for name in new.recordings:
        if name not in old.recordings:
            yield f"{name}: new"
        elif old.recordings[name] != new.recordings[name]:
            yield f"{name}: error {old.recordings[name].error} became {new.recordings[name].error}"
    for name, sweep in new.sweeps.items():
        there = old.sweeps[name].cells if name in old.sweeps else {}
        for label in {**there, **sweep.cells}:
            if said := _change(there.get(label), sweep.cells.get(label), old.settings):
                yield f"{name} {label}: {said}"


def _change(past: Past | None, now: Past | None, settings: Settings) -> str:
    if past is None:
        return "new"
    return "gone" if now is None else cell_fault(past, now) or quality_fault(past, now, settings)
