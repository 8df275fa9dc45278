"""Work as stateless tasks of Ray, on this machine or on a cluster whose machines share the results folder's disk.

What travels is a task's description and what it says at its end; samples go to the disk.
"""

import logging
import os
import secrets
import socket
from concurrent.futures import Future
from functools import partial
from typing import Any

import torch

from bench.errors import UsageError
from bench.executors import How
from bench.executors.remote import attempt, pack
from bench.worker import Outcome, Place, Work

os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "^")  # what Ray would print among what a sweep says; read on import
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
try:
    import ray
    from ray.exceptions import RayError, RayTaskError
except ImportError as error:
    raise UsageError("engine ray needs the package ray: pip install 'fewstep[ray]'") from error

PIECE = 2000  # samples a task, which costs some ms where they take a second and more
RETRIES = 3  # of a task whose worker vanished
PATIENCE = 10.0  # seconds for a cluster's head to answer
SETTINGS = 4  # a frame of HTTP/2
STORE = 2**28  # bytes of memory for what travels


class WorkerLostError(RuntimeError):
    """Work whose worker vanished each time that it was tried."""


class Ray:
    """Tasks on a Ray that runs; `ours` is one that ends with the engine.

    A worker has a CPU, and a GPU if `gpus` is 1; work that is alone has all CPUs of a `machine`, so that nothing runs
    beside it, and so many `threads`.
    """

    piece = PIECE

    def __init__(self, place: Place, gpus: int, machine: int, threads: int, slots: int, ours: bool) -> None:
        self.slots, self._ours, self._place = slots, ours, ray.put(place)
        self._usual = self._task(1, gpus, None)
        self._alone = self._task(machine, gpus, threads)

    def _task(self, cpus: int, gpus: int, threads: int | None) -> Any:
        # Processes are used again: Ray would give each task with a GPU one of its own.
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES, max_calls=0)(_attempt)
        return partial(task.remote, self._place, threads)

    def submit(self, work: Work, alone: bool = False) -> Future[Outcome]:
        """What goes wrong is the future's, as an exception of this process's own kinds."""
        told: Future[Outcome] = Future()
        there: Future[Outcome] = (self._alone if alone else self._usual)(pack(work)).future()
        there.add_done_callback(partial(_tell, told))
        return told

    def close(self) -> None:
        """A cluster drops what it has of ours when this process leaves."""
        if self._ours:
            ray.shutdown()


def start(how: How, place: Place) -> Ray:
    """Connect to the cluster at `how.address`, or start a Ray on this machine alone; raises UsageError.

    One that this process uses already is shared.  `how.workers` is how many a Ray of our own has, and how much of our
    work a cluster does at a time.
    """
    gpus, ours = int(torch.device(place.device).type == "cuda"), not ray.is_initialized()
    if ours:
        _connect(how.address) if how.address else _start(how.workers, gpus)
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    machines = [each for each in machines if each.get("CPU", 0) >= 1 and each.get("GPU", 0) >= gpus]
    if not machines:
        raise UsageError(f"engine ray: no machine of the cluster has a {'GPU' if gpus else 'CPU'} to give")
    workers = int(sum(each["GPU" if gpus else "CPU"] for each in machines))
    largest = int(max(each["CPU"] for each in machines))
    threads = largest if how.address else torch.get_num_threads()
    slots = how.workers if how.address and how.workers else 2 * workers  # the next piece waits where it will be done
    return Ray(place, gpus, largest, threads, slots, ours)


def _start(workers: int | None, gpus: int) -> None:
    """A Ray that takes work of this process alone."""
    there = torch.cuda.device_count() if gpus else len(os.sched_getaffinity(0))
    workers = workers or there
    if gpus and workers > there:
        raise UsageError(f"--workers {workers}: each has a GPU to itself, and this machine has {there}: give as many")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # Ray listens on the network too
    ray.init(
        address="local", num_cpus=workers, num_gpus=gpus * workers, object_store_memory=STORE,
        include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False,
    )  # fmt: skip


def _connect(address: str) -> None:
    """Raises UsageError where no Ray of our version answers."""
    try:
        why = "" if _answers(address) else "what answers is no Ray"
    except (OSError, ValueError, OverflowError) as error:
        why = str(error)
    if why:
        raise UsageError(f"--address {address}: no cluster there ({why}); give host:port as `ray start` prints it")
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise UsageError(f"--address {address}: {error}") from error


def _answers(address: str) -> bool:
    """Whether a server of gRPC is there, which Ray itself would ask for minutes: it greets with its settings (RFC 9113,
    Section 3.4)."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), PATIENCE) as there:
        there.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, SETTINGS, 0, 0, 0, 0, 0)))
        return os.environ.get("RAY_USE_TLS") == "1" or there.recv(9)[3:4] == bytes((SETTINGS,))


def _attempt(place: Place, threads: int | None, work: bytes) -> Outcome:
    """The task: what a worker does, on its own GPU if it needs one."""
    if torch.device(place.device).type != "cuda":
        return attempt(place, work, threads)
    # Ray hides all GPUs but the task's, which a process that is used again would not notice.
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    return attempt(place, work, threads, f"cuda:{ray.get_gpu_ids()[0]}")


def _tell(told: Future[Outcome], there: Future[Outcome]) -> None:
    """Hand on what a task came back with."""
    error = there.exception()
    if error is None:
        told.set_result(there.result())
    elif isinstance(error, RayTaskError):
        told.set_exception(error.cause)
    else:
        what = " ".join(str(error).split())[:200]
        told.set_exception(
            WorkerLostError(f"its worker vanished {RETRIES + 1} times, killed, hanging or out of memory: {what}")
        )
