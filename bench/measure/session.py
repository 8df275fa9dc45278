"""A measuring session: what it found is kept round by round, and becomes the measurements of its cells at its end.

A session that was cut off goes on where it was, if its code and machine are the same and it holds all cells that are
left; else a new one begins.
"""

import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch

from bench.environment import environment
from bench.forkserver import FailedThereError, ProcessDiedError, stream
from bench.measure.batch import best_of
from bench.measure.record import summaries
from bench.measure.work import Begun, Failed, Round, Rounds, peaks, rounds, throughput
from bench.spec import Cell, Latency
from bench.store import Record, Store

OnStep = Callable[[str], None]
Fault = dict[str, str]  # cause and traceback


@dataclass
class Session:
    """What is known so far; `about` stands in every measurement."""

    about: dict[str, Any]
    cells: list[str]
    memory: dict[str, dict[str, Any]] = field(default_factory=dict)
    rounds: list[list[dict[str, Any]]] = field(default_factory=list)
    clocks_mhz: list[list[int] | None] = field(default_factory=list)
    faults: dict[str, Fault] = field(default_factory=dict)


@dataclass(frozen=True)
class Measuring:
    """Everything a session needs: cells of one checkpoint, all with samples, on one device."""

    checkpoint: str
    cells: Sequence[Cell]
    setting: Latency
    seed: int
    device: torch.device
    store: Store
    on_step: OnStep

    @property
    def place(self) -> tuple[torch.device, int]:
        return self.device, self.setting.threads or torch.get_num_threads()

    def run(self) -> dict[str, Fault]:
        """Measure the cells into the store; returns what went wrong, by the cell's key or the name of work apart."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # this process's own cache would narrow the measuring one's memory
        session = self._resumed() or self._new()
        try:
            self._find_batch(session)
            self._take_memory(session)
            if "finished" not in session.about:  # else it was cut off while it wrote its measurements
                self._time(session)
                session.about["finished"] = _now()
                self._keep(session)
        except (FailedThereError, ProcessDiedError) as error:  # no cell's own fault, so that none can be measured
            session.faults |= dict.fromkeys(session.cells, _fault(error))
        for cell in self.cells:
            if cell.key not in session.faults:
                self.store.put_measurement(cell.key, measurement(session, cell.key))
        self.store.drop_session()
        return session.faults

    def _new(self) -> Session:
        now = _now()
        about = {
            "id": f"{now}-{secrets.token_hex(3)}",
            "started": [now],
            "load": [os.getloadavg()[0]],
            "seed": self.seed,
            "machine": self._machine(),
        }
        session = Session(about, sorted(cell.key for cell in self.cells))
        self._keep(session)
        return session

    def _resumed(self) -> Session | None:
        """The session that was cut off, unless it was another's."""
        kept, cells = self.store.session(), {cell.key for cell in self.cells}
        if kept is None or not cells <= set(kept["cells"]) or kept["about"]["machine"] != self._machine():
            return None
        session = Session(**kept)
        session.about["started"].append(_now())
        session.about["load"].append(os.getloadavg()[0])
        return session

    def _machine(self) -> dict[str, Any]:
        device, threads = self.place
        return environment(device) | {"threads": threads}

    def _keep(self, session: Session) -> None:
        self.store.put_session(asdict(session))

    def _find_batch(self, session: Session) -> None:
        """The batch of best throughput; a process that dies of a batch has found the end of memory."""
        if "throughput" in session.about:
            return
        curve: list[dict[str, Any]] = []
        stopped = ""
        self.on_step("the batch of best throughput")
        try:
            for point in stream(throughput, self.checkpoint, self.cells[0], *self.place, self.setting.max_batch):
                if "stopped" in point:
                    stopped = point["stopped"]
                else:
                    curve.append(point)
        except ProcessDiedError as error:
            if not curve:
                raise
            stopped = f"at batch {2 * curve[-1]['batch']} {error}"
        session.about["throughput"] = {"best_batch": best_of(curve), "curve": curve, "stopped": stopped}
        self._keep(session)

    def _take_memory(self, session: Session) -> None:
        known = session.memory.keys(), session.faults.keys()
        while left := [cell for cell in self.cells if not any(cell.key in keys for keys in known)]:
            group = [cell for cell in left if (cell.digest, cell.mode) == (left[0].digest, left[0].mode)]
            self.on_step(f"memory of {group[0].label}")
            try:
                told = stream(peaks, self.checkpoint, group, *self.place, self._batches(session)[-1])
                for (key, found), following in zip(told, [*group[1:], None], strict=True):
                    session.memory[key] = found
                    if following:
                        self.on_step(f"memory of {following.label}")
            except (FailedThereError, ProcessDiedError) as error:
                stuck = next(cell for cell in group if cell.key not in session.memory)
                session.faults[stuck.key] = _fault(error)
        self._keep(session)

    def _time(self, session: Session) -> None:
        """All rounds; after a trial that takes its process down, a new process goes on without that cell."""
        labels = {cell.key: cell.label for cell in self.cells}
        while left := [cell for cell in self.cells if cell.key not in session.faults]:
            last = ""
            s = self.setting
            plan = Rounds(self.seed, len(session.rounds), s.rounds, s.seconds * len(left))
            try:
                for event in stream(rounds, self.checkpoint, left, *self.place, self._batches(session), plan):
                    match event:
                        case Begun((name, batch)):
                            last = name
                            self.on_step(f"round {len(session.rounds) + 1}: {labels.get(name, name)}, batch {batch}")
                        case Failed((name, _), cause, traceback):
                            session.faults[name] = {"cause": cause, "traceback": traceback}
                        case Round(trials, clocks_mhz):
                            session.rounds.append(trials)
                            session.clocks_mhz.append(clocks_mhz)
                            self._keep(session)
            except ProcessDiedError as error:
                if last not in labels:
                    raise
                session.faults[last] = _fault(error)
            else:
                return

    def _batches(self, session: Session) -> list[int]:
        return sorted({1, session.about["throughput"]["best_batch"]})


def measurement(session: Session, key: str) -> Record:
    """A cell's immutable record."""
    timed = {trial["name"] for trials in session.rounds for trial in trials}
    apart = {name: summaries(session.rounds, name) for name in sorted(timed - set(session.cells))}
    about = session.about | {"cells": len(session.cells), "rounds": len(session.rounds), "apart": apart}
    if any(session.clocks_mhz):
        about["clocks_mhz"] = session.clocks_mhz
    latency = summaries(session.rounds, key)
    return {"key": key, "latency": latency, "memory": session.memory[key], "session": about}


def _fault(error: FailedThereError | ProcessDiedError) -> Fault:
    return {"cause": str(error), "traceback": getattr(error, "traceback", "")}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
