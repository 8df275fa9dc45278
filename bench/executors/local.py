"""Work in this process: by several threads with a worker each, or one after another."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue

import torch

from bench.worker import Outcome, Work, Worker


class Local:
    """The engine that needs nothing else; `worker` makes one of so many workers."""

    piece = 1

    def __init__(self, worker: Callable[[], Worker], workers: int) -> None:
        self.slots = workers
        self._free: SimpleQueue[Worker] = SimpleQueue()
        for _ in range(workers):
            self._free.put(worker())
        self._pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))

    def submit(self, work: Work, alone: bool = False) -> Future[Outcome]:
        """Only where there is one worker, or nothing else runs, in the calling thread: signals are heard there."""
        if self.slots > 1 and not alone:
            return self._pool.submit(self._run, work)
        future: Future[Outcome] = Future()
        try:
            future.set_result(self._run(work))
        except Exception as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        """Nothing is begun any more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _run(self, work: Work) -> Outcome:
        worker = self._free.get()
        try:
            return work.run(worker)
        finally:
            self._free.put(worker)
