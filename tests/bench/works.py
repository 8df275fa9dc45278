"""Work that says what its process is like, for tests of engines."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.worker import Failed, Outcome, Samples, Worker
from solvers.dpm_solver_adaptive import Adaptive


@dataclass(frozen=True)
class Tell:
    """Tells of its process, and when it ran, `seconds` long."""

    seconds: float = 0.0

    def run(self, worker: Worker) -> Outcome:
        begin = time.time()
        time.sleep(self.seconds)
        said = {
            "begin": begin,
            "end": time.time(),
            "pid": os.getpid(),
            "device": worker.device,
            "hidden": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "threads": torch.get_num_threads(),
            "cwd": Path.cwd(),
        }
        return Outcome(failed={name: Failed(str(value), "") for name, value in said.items()})


@dataclass(frozen=True)
class TellSampling(Samples):
    """Tells the same where a cell's samples would be made."""

    def run(self, worker: Worker) -> Outcome:
        return Tell(0.3).run(worker)


@dataclass(frozen=True)
class Raise:
    """Raises what it is given."""

    error: Exception

    def run(self, worker: Worker) -> Outcome:
        raise self.error


@dataclass(frozen=True)
class Name:
    """Says what a procedure calls itself."""

    procedure: Adaptive

    def run(self, worker: Worker) -> Outcome:
        return Outcome(failed={str(self.procedure): Failed(type(self.procedure).__module__, "")})
