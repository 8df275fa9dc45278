"""Work that has mishaps, for tests of engines: `note` is a file that says that it was begun."""

import errno
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from bench.worker import Outcome, Worker


@dataclass(frozen=True)
class Fine:
    made: int

    def run(self, worker: Worker) -> Outcome:
        return Outcome(self.made)


@dataclass(frozen=True)
class Dies:
    """Its process is killed, the first time or always."""

    note: Path
    always: bool

    def run(self, worker: Worker) -> Outcome:
        if self.always or not self.note.exists():
            self.note.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return Outcome(2)


@dataclass(frozen=True)
class Preempted:
    """Its machine is taken away while it works, once."""

    note: Path

    def run(self, worker: Worker) -> Outcome:
        if not self.note.exists():
            self.note.touch()
            os.kill(os.getpid(), signal.SIGUSR2)
            time.sleep(60)
        return Outcome(3)


@dataclass(frozen=True)
class Full:
    """The disk is."""

    def run(self, worker: Worker) -> Outcome:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@dataclass(frozen=True)
class Long:
    """Until somebody cancels it."""

    note: Path

    def run(self, worker: Worker) -> Outcome:
        self.note.touch()
        time.sleep(120)
        return Outcome()
