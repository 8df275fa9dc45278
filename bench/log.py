"""What happens in a run, one JSON object a line, by all processes that work on it: <run>/log.jsonl.

A log and no more: records say what is done, and a sweep whose log cannot be written goes on without.
"""

import fcntl
import json
import os
import secrets
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Entry = dict[str, Any]
NAME = "log.jsonl"


@dataclass(frozen=True)
class RunLog:
    """Appends events to a folder's log, each with the name of the run, one command's work on the folder.

    A copy in another process writes to the same log, and counts its own seconds: machines' clocks differ.
    """

    folder: Path
    run: str = field(default_factory=lambda: secrets.token_hex(4))
    began: float = field(default_factory=time.monotonic)

    def __reduce__(self) -> tuple[type["RunLog"], tuple[Path, str]]:
        return RunLog, (self.folder, self.run)

    def write(self, event: str, **fields: Any) -> None:
        """Append an event; where that is not possible, on a full disk say, it is lost and nothing is raised."""
        entry = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "elapsed": round(time.monotonic() - self.began, 3),
            "event": event,
            "run": self.run,
            "process": f"{socket.gethostname()}:{os.getpid()}",
        }
        with suppress(OSError):
            _append(self.folder / NAME, json.dumps(entry | fields, default=str).encode() + b"\n")


def read_log(folder: Path) -> list[Entry]:
    """All events, oldest first; lines that are torn or no events are left out, and no log is an empty one."""
    return read_on(folder, 0)[0]


def read_on(folder: Path, start: int) -> tuple[list[Entry], int]:
    """The events from byte `start` of the log on, and where those to come will begin.

    The last line counts once it is whole; a log that is shorter than `start` is another one, read from its start.
    """
    try:
        with (folder / NAME).open("rb") as file:
            start = start if start <= os.fstat(file.fileno()).st_size else 0
            file.seek(start)
            text = file.read()
    except OSError:
        return [], 0
    whole = text[: text.rfind(b"\n") + 1]
    return [entry for line in whole.splitlines() if (entry := _parsed(line))], start + len(whole)


def _append(path: Path, line: bytes) -> None:
    """After the lines of all others, whole; a line that a full disk has cut is ended first."""
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed: without, a line that is being written looks cut
        size = os.fstat(file).st_size
        cut = size and os.pread(file, 1, size - 1) != b"\n"
        os.write(file, b"\n" + line if cut else line)
    finally:
        os.close(file)


def _parsed(line: bytes) -> Entry | None:
    """The event in a line; None where there is none, or where its time, name or run are damaged."""
    try:
        entry = json.loads(line)
        whole = isinstance(entry["event"], str) and isinstance(entry["run"], str)
        return entry if whole and datetime.fromisoformat(entry["time"]).tzinfo else None
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
