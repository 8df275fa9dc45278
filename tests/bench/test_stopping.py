"""Ends asked for by signals, and limits of time."""

import os
import signal
import threading
import time

import pytest

from bench.stopping import Interrupted, Stop, heeded, limited


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_asks_and_the_work_in_hand_goes_on(number: signal.Signals, code: int) -> None:
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with heeded() as stop:
            stop.check()
            os.kill(os.getpid(), number)
            assert stop.asked
            with pytest.raises(Interrupted, match=number.name) as caught:
                stop.check()
        assert caught.value.exit_code == code
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_who_asks_twice_does_not_want_to_wait() -> None:
    stop = Stop()
    stop.ask(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        stop.ask(signal.SIGINT)


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with heeded() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert not stop.asked
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_takes_too_long_is_interrupted() -> None:
    begin = time.monotonic()
    with pytest.raises(TimeoutError, match=r"it took longer than 0\.05 s"), limited(0.05):
        time.sleep(30)
    assert time.monotonic() - begin < 10
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_no_limit_is_none() -> None:
    with limited(None):
        time.sleep(0.01)
    with limited(30.0):
        pass
    time.sleep(0.01)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_thread_has_neither(capsys: pytest.CaptureFixture[str]) -> None:
    seen = []

    def work() -> None:
        with heeded() as stop, limited(1e-3):
            time.sleep(0.05)
            seen.append(stop.asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
