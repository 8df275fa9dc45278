"""Processes to measure in: forked from a clean one that has imported torch and run nothing on it.

One that has loaded a network may branch in turn, once for each thing to do with it.
"""

import multiprocessing
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from threading import Lock
from types import ModuleType
from typing import Any

_STARTING = Lock()


class ProcessDiedError(RuntimeError):
    """The process ended without a word, as when the system kills it for its memory."""


class FailedThereError(RuntimeError):
    """An exception in the process: its cause in one line, and its traceback."""

    def __init__(self, cause: str, traceback: str) -> None:
        super().__init__(cause)
        self.traceback = traceback


def start_server() -> ForkServerContext:
    """Start it if it does not run yet; its imports go on beside the caller's, which need no torch for this."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.measure.work"])
    # It and all that it forks are deaf to a terminal's Ctrl-C from their first import on: who listens ends them.
    resource_tracker.ensure_running()  # which would lift the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def stream(work: Callable[..., Iterator[Any]], *arguments: Any) -> Iterator[Any]:
    """What the generator `work(*arguments)` yields in a process of its own, item by item.

    Raises FailedThereError when it raises, ProcessDiedError when its process ends before it does.
    """
    by_value = pickle.dumps((work, arguments))  # multiprocessing's own would share each tensor through a file
    yield from _heard(*begin(_tell_of, by_value))


def begin(target: Callable[..., None], *arguments: Any, daemon: bool = False) -> tuple[BaseProcess, Connection]:
    """A process that runs `target(connection, *arguments)`, and our end of the connection.

    A daemon ends with this process, and starts none of its own.
    """
    context = start_server()
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *arguments), daemon=daemon)
    with _without_main():
        process.start()
    theirs.close()
    return process, ours


def branch(work: Callable[..., Iterator[Any]], *arguments: Any) -> Iterator[Any]:
    """As `stream`, in a copy of this process, with all that it has loaded; no threads may have run in it."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_tell, args=(theirs, lambda: work(*arguments)))
    process.start()
    theirs.close()
    yield from _heard(process, ours)


def _heard(process: BaseProcess, ours: Connection) -> Iterator[Any]:
    """What a process tells; it ends with its listener."""
    try:
        while (said := ours.recv())[0] == "item":
            yield said[1]
        if said[0] == "error":
            raise FailedThereError(*said[1])
    except EOFError:
        process.join()
        raise ProcessDiedError(f"its process ended with exit code {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
        ours.close()


@contextmanager
def _without_main() -> Iterator[None]:
    """Hide the program that runs: a new process would run it again, and a script that sweeps would sweep in there."""
    with _STARTING:  # threads start processes too
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def _tell_of(there: Connection, by_value: bytes) -> None:
    def items() -> Iterator[Any]:
        work, arguments = pickle.loads(by_value)
        return work(*arguments)  # type: ignore[no-any-return]

    _tell(there, items)


def _tell(there: Connection, items: Callable[[], Iterator[Any]]) -> None:
    from bench.causes import cause_of  # imports torch, which only this process needs

    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal sends them to all; who listens says when it is enough
        signal.signal(number, signal.SIG_IGN)
    try:
        for item in items():
            there.send(("item", item))
        there.send(("end", None))
    except BrokenPipeError:  # whoever listened is gone
        pass
    except (FailedThereError, ProcessDiedError) as error:  # in a branch of this process, which said why
        there.send(("error", (str(error), getattr(error, "traceback", ""))))
    except Exception as error:
        there.send(("error", (cause_of(error), "".join(traceback.format_exception(error)))))
