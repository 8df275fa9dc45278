"""Cells through an engine: cut, run in any order, put together, and what becomes of those that fail."""

import errno
import random
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bench.executors.drive import Drive
from bench.log import read_log
from bench.runner import Job, prepare
from bench.spec import Sweep
from bench.stopping import Interrupted, Stop
from bench.store import Record, content
from bench.worker import Outcome, Samples, Worker

SWEEP = Sweep(checkpoint="gmm", solvers=("ddim", "dpmpp_2m"), nfe=(2, 3), samples=50, latency=None)


@dataclass
class Threads:
    """An engine of threads with a worker each, in which `before` happens to every piece of work."""

    job: Job
    before: Callable[[Samples], None] = lambda work: None
    slots: int = 3
    piece: int = 20
    begun: list[Samples] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pool = ThreadPoolExecutor(self.slots)

    def submit(self, work: Samples, alone: bool = False) -> Future[Outcome]:
        def run() -> Outcome:
            self.begun.append(work)
            self.before(work)
            return work.run(Worker(self.job.place))

        return self.pool.submit(run)

    def close(self) -> None:
        self.pool.shutdown()


def job_in(folder: Path) -> Job:
    job = prepare(SWEEP, folder, "cpu", 10)
    job.open()
    return job


def drive_of(job: Job, engine: Threads, seconds: float | None = None, stop: Stop | None = None) -> Drive:
    return Drive(job.store, engine, job.batch, job.log, stop or Stop(), lambda cell, outcome: None, seconds)


def numbers(job: Job) -> list[Record]:
    return [content(record) for record in job.store.records()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Job:
    job = job_in(tmp_path_factory.mktemp("whole") / "run")
    assert job.run("a test") == []
    return job


@pytest.mark.parametrize("blocks", [1, 2, 5, 40])
def test_pieces_of_any_size_that_end_in_any_order_give_the_same_records(
    whole: Job, tmp_path: Path, blocks: int
) -> None:
    job, chance = job_in(tmp_path / "run"), random.Random(blocks)
    engine = Threads(job, lambda work: time.sleep(chance.uniform(0, 0.05)), piece=10 * blocks)
    drive = drive_of(job, engine)
    drive.run(job.cells)
    assert drive.failures == []
    assert numbers(job) == numbers(whole)
    pieces = -(-50 // (10 * blocks))
    assert len(engine.begun) == len(job.cells) * (pieces + (pieces > 1))
    assert not any(work.last for work in engine.begun if work.start or (pieces > 1 and work.stop < 50))


def test_a_failing_piece_ends_its_cell_and_no_other(whole: Job, tmp_path: Path) -> None:
    job = job_in(tmp_path / "run")
    bad = job.cells[1]

    def vanish(work: Samples) -> None:
        if work.cell is bad and work.start == 20:
            raise RuntimeError("the worker is gone")

    drive = drive_of(job, Threads(job, vanish, slots=1))
    drive.run(job.cells)
    assert [(f.label, f.cause) for f in drive.failures] == [(bad.label, "RuntimeError: the worker is gone")]
    assert numbers(job) == [record for record in numbers(whole) if record["key"] != bad.key]
    (attempt,) = job.store.failures(bad.key)
    assert (attempt["cause"], attempt["what"]) == ("RuntimeError: the worker is gone", "sampling")
    assert job.store.has_block(bad.key, (0, 10))  # for the next command
    drive = drive_of(job, Threads(job))
    drive.run(job.pending)
    assert numbers(job) == numbers(whole)


def test_a_cells_time_is_that_of_all_its_pieces(tmp_path: Path) -> None:
    job = job_in(tmp_path / "run")
    engine = Threads(job, slots=1, piece=10)
    drive_of(job, engine, seconds=100.0).run(job.cells[:1])
    left = [work.seconds for work in engine.begun]
    assert len(left) == 6
    assert left == sorted(left, reverse=True)  # type: ignore[type-var]
    assert 0 < left[-1] < left[0] == 100.0  # type: ignore[operator]


def test_a_full_disk_ends_the_run_and_is_no_cells_failure(tmp_path: Path) -> None:
    job = job_in(tmp_path / "run")

    def fill(work: Samples) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    drive = drive_of(job, Threads(job, fill))
    with pytest.raises(OSError, match="No space left"):
        drive.run(job.cells)
    assert drive.failures == []


def test_what_runs_is_finished_when_an_end_is_asked_for(whole: Job, tmp_path: Path) -> None:
    job, stop = job_in(tmp_path / "run"), Stop()
    engine = Threads(job, lambda work: None if stop.asked else stop.ask(15), slots=1)
    with pytest.raises(Interrupted, match="SIGTERM"):
        drive_of(job, engine, stop=stop).run(job.cells)
    (work,) = engine.begun
    assert [job.store.has_block(work.cell.key, block) for block in ((0, 10), (10, 10), (20, 10))] == [True, True, False]
    drive_of(job, Threads(job)).run(job.cells)
    assert numbers(job) == numbers(whole)


def test_the_log_tells_of_each_cell(whole: Job) -> None:
    entries = [entry for entry in read_log(whole.store.folder) if entry["event"] == "cell_done"]
    assert [entry["key"] for entry in entries] == [cell.key for cell in whole.cells]
    for entry in entries:
        assert entry["seconds"].keys() == {"network", "solver", "features", "distances", "io", "startup"}
        assert all(value >= 0 for value in entry["seconds"].values())
        assert entry["seconds"]["network"] > 0
