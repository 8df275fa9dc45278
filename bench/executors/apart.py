"""A process that does work for this one, and that may be lost without harm."""

import faulthandler
import pickle
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import NamedTemporaryFile

from bench.executors.remote import attempt, pack
from bench.forkserver import ProcessDiedError, begin
from bench.worker import Outcome, Place, Samples, Work

HUNG = "Timeout"  # how faulthandler begins to tell that it ended a process


class Apart:
    """Does one piece of work after another, in a process that is begun anew once it was lost."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._begun: tuple[BaseProcess, Connection] | None = None
        self._last_words = NamedTemporaryFile()  # noqa: SIM115  (what the process was at when it was lost)

    def __call__(self, work: Work) -> Outcome:
        """Raises what the process raised; TimeoutError and ProcessDiedError, with a note, where it was lost."""
        self._begun = self._begun or begin(_serve, self.place, self._last_words.name, daemon=True)
        there = self._begun[1]
        try:
            there.send_bytes(pack(work))
            said = pickle.loads(there.recv_bytes())
        except (EOFError, ConnectionError):
            said = self._lost(work)
        if isinstance(said, Exception):
            raise said
        return said  # type: ignore[no-any-return]

    def end(self) -> None:
        """Whatever it is at."""
        if begun := self._begun:
            begun[0].kill()

    def _lost(self, work: Work) -> Exception:
        assert self._begun
        process, self._begun = self._begun[0], None
        process.join()
        file = Path(self._last_words.name)
        words = file.read_text()
        file.write_text("")
        error: Exception = ProcessDiedError(f"its process ended with exit code {process.exitcode}")
        if isinstance(work, Samples) and words.startswith(HUNG):
            error = TimeoutError(f"it took longer than {work.seconds:g} s, in a call that does not return")
        error.add_note(words)
        return error


def _serve(there: Connection, place: Place, last_words: str) -> None:
    """Answer until nobody asks any more, or listens."""
    with open(last_words, "a") as file, suppress(EOFError, ConnectionError):
        faulthandler.enable(file)
        while True:
            work = there.recv_bytes()
            try:
                said: Outcome | Exception = attempt(place, work, threads=1, device=place.device, last_words=file)
            except Exception as error:
                said = error
            there.send_bytes(pickle.dumps(said))
