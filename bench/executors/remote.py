"""What a process of an engine with several does: it takes packed work, and keeps its worker from piece to piece."""

import faulthandler
import os
import pickle
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import TextIO

import cloudpickle
import torch

from bench.metrics.threads import one_thread
from bench.worker import Outcome, Place, Samples, Work, Worker
from solvers.registry import PLUGIN

GRACE = 10.0  # seconds that a library's call has to return in, once the time of a cell is over


def pack(work: Work) -> bytes:
    """Work as it travels; what a plug-in's file defines goes along, since no other process has imported it."""
    for name, module in sys.modules.copy().items():
        if name.startswith(PLUGIN):
            cloudpickle.register_pickle_by_value(module)
    return cloudpickle.dumps(work)


def attempt(
    place: Place,
    work: bytes,
    threads: int | None = None,
    device: str | None = None,
    last_words: TextIO | None = None,
) -> Outcome:
    """Do packed work in this process, on so many CPU threads, or what torch finds that it may use.

    Samples are made on one, since sums that several share round differently for each number of them.  A GPU is the
    `device`, or the first that this process sees: which one the driver named means nothing here.  Where a call of a
    library keeps it for much longer than samples may take, this process ends, which the engine sees, and says what it
    was at to `last_words`, or among its errors.
    """
    if threads:
        torch.set_num_threads(threads)
    found: Work = pickle.loads(work)
    worker = _worker(replace(place, device=device or torch.device(place.device).type))
    if not isinstance(found, Samples):
        return found.run(worker)
    with one_thread(), _ended(found.seconds, last_words or sys.stderr):
        return found.run(worker)


@contextmanager
def _ended(seconds: float | None, last_words: TextIO) -> Iterator[None]:
    """This process, where what runs within takes longer by GRACE; a limit of Python's own needs its calls to return."""
    if seconds is None:
        yield
        return
    faulthandler.dump_traceback_later(seconds + GRACE, exit=True, file=last_words)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@lru_cache(maxsize=1)
def _worker(place: Place) -> Worker:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the driver lets what was begun end
    os.chdir(place.cwd)
    return Worker(place)
