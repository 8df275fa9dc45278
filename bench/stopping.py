"""Stopping in good order: signals that let a sweep finish what it is at, and limits on how long that may take."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal asked for an end, and what was begun is finished and kept."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        """What shells expect of a program that a signal ended."""
        return 128 + self.number


class Stop:
    """Whether a signal has asked for an end."""

    def __init__(self) -> None:
        self._asked: int | None = None
        self._at_once = False

    @property
    def asked(self) -> bool:
        return self._asked is not None

    def ask(self, number: int, frame: FrameType | None = None) -> None:
        """Ask for an end; who asks twice does not want to wait.  Raises KeyboardInterrupt the second time."""
        if self.asked:
            raise KeyboardInterrupt
        self._asked = number
        if self._at_once:
            self.check()

    def check(self) -> None:
        """Raises Interrupted when an end was asked for: call it where everything is kept."""
        if self._asked is not None:
            raise Interrupted(self._asked)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Nothing is lost in here by an end at any moment.  Raises Interrupted as soon as one is asked for."""
        self._at_once = True
        try:
            self.check()
            yield
        finally:
            self._at_once = False


@contextmanager
def heeded() -> Iterator[Stop]:
    """SIGINT and SIGTERM ask for an end while this lasts; those that this process was told to ignore stay ignored."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # where Python takes no signals
        yield stop
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, stop.ask)
    try:
        yield stop
    finally:
        for number in heard:
            signal.signal(number, before[number])


@contextmanager
def limited(seconds: float | None) -> Iterator[None]:
    """Raises TimeoutError in what runs within once it took so many seconds; Python's own code is interrupted at once,
    a call of a library when it returns.  In the main thread alone: elsewhere, and for None, there is no limit."""
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"it took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
