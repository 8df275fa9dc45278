"""Work on this machine: in this process by several threads with a worker each, or in a process for each thread."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue

import torch

from bench.executors.apart import Apart
from bench.worker import Outcome, Place, Work, Worker

Do = Callable[[Work], Outcome]


class Local:
    """The engine that needs nothing else; `worker` makes one of so many workers.

    With a `place`, all but what is alone is done there in processes of their own, which what never returns cannot keep.
    """

    piece = 1

    def __init__(self, worker: Callable[[], Worker], workers: int, place: Place | None = None) -> None:
        self.slots, self._worker = workers, worker
        self._processes = [Apart(place) for _ in range(workers)] if place else []
        self._free: SimpleQueue[Do] = SimpleQueue()
        for do in self._processes or [partial(_do, worker()) for _ in range(workers)]:
            self._free.put(do)
        self._pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))

    def submit(self, work: Work, alone: bool = False) -> Future[Outcome]:
        """Only where there is one worker, or nothing else runs, in the calling thread: signals are heard there."""
        if self.slots > 1 and not alone:
            return self._pool.submit(self._run, work)
        future: Future[Outcome] = Future()
        try:
            future.set_result(_do(self._worker(), work) if alone else self._run(work))
        except Exception as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        """Nothing is begun any more."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.end()

    def _run(self, work: Work) -> Outcome:
        do = self._free.get()
        try:
            return do(work)
        finally:
            self._free.put(do)


def _do(worker: Worker, work: Work) -> Outcome:
    return work.run(worker)
