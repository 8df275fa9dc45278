"""What a process of an engine with several does: it takes packed work, and keeps its worker from piece to piece."""

import os
import pickle
import signal
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache

import cloudpickle
import torch

from bench.metrics.threads import one_thread
from bench.worker import Outcome, Place, Samples, Work, Worker
from solvers.registry import PLUGIN


def pack(work: Work) -> bytes:
    """Work as it travels; what a plug-in's file defines goes along, since no other process has imported it."""
    for name, module in sys.modules.copy().items():
        if name.startswith(PLUGIN):
            cloudpickle.register_pickle_by_value(module)
    return cloudpickle.dumps(work)


def attempt(place: Place, work: bytes, threads: int | None = None, device: str | None = None) -> Outcome:
    """Do packed work in this process, on so many CPU threads, or what torch finds that it may use.

    Samples are made on one, since sums that several share round differently for each number of them.  A GPU is the
    `device`, or the first that this process sees: which one the driver named means nothing here.
    """
    if threads:
        torch.set_num_threads(threads)
    found: Work = pickle.loads(work)
    worker = _worker(replace(place, device=device or torch.device(place.device).type))
    with one_thread() if isinstance(found, Samples) else nullcontext():
        return found.run(worker)


@lru_cache(maxsize=1)
def _worker(place: Place) -> Worker:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the driver lets what was begun end
    os.chdir(place.cwd)
    return Worker(place)
