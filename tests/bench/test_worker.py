"""A worker: blocks of samples that are there are not made again, and what is kept is what was asked for."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.executors import How
from bench.runner import Job, prepare
from bench.sealed import read_arrays
from bench.spec import Sweep
from bench.store import Record, content
from bench.worker import Samples, Worker

SWEEP = Sweep(checkpoint="gmm", solvers=("dpmpp_2m", "dpmpp_2m_sde"), nfe=(5,), samples=90, latency=None)


def job_in(folder: Path, how: How | None = None) -> Job:
    job = prepare(SWEEP, folder, "cpu", 20, how)
    job.open()
    return job


def numbers(job: Job) -> list[Record]:
    return [content(record) for record in job.store.records()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Job:
    job = job_in(tmp_path_factory.mktemp("whole") / "run")
    assert job.run("a test") == []
    return job


def test_pieces_in_any_order_by_several_workers_give_the_same_bytes(whole: Job, tmp_path: Path) -> None:
    job = job_in(tmp_path / "run")
    for cell in reversed(job.cells):
        for start, stop in ((60, 90), (0, 20), (20, 60)):
            made = Samples(cell, start, stop, last=False).run(Worker(job.place))
            assert (made.made, made.failed) == (stop - start, {})
        assert not job.store.has(cell.key)
        assert Samples(cell, 0, 90, last=True).run(Worker(job.place)).made == 0
    assert numbers(job) == numbers(whole)
    for cell in job.cells:
        ours, theirs = (j.store.folder / "sidecars" / f"{cell.key}.npz" for j in (job, whole))
        assert ours.read_bytes() == theirs.read_bytes()
    assert not (job.store.folder / "chunks").exists()


def test_a_damaged_block_is_made_again_and_no_other(whole: Job, tmp_path: Path) -> None:
    job = job_in(tmp_path / "run")
    cell = job.cells[0]
    Samples(cell, 0, 80, last=False).run(Worker(job.place))
    path = job.store.folder / "chunks" / cell.key / "20-20.npz"
    path.write_bytes(path.read_bytes()[:-100])
    before = {p: p.stat().st_mtime_ns for p in path.parent.iterdir() if p != path}
    worker = Worker(job.place)
    assert worker.make(cell, 0, 90) == 10
    worker.finish(cell)
    assert before.keys() == {path.with_name(f"{start}-20.npz") for start in (0, 40, 60)}
    assert numbers(job)[0] == next(r for r in numbers(whole) if r["key"] == cell.key)


def test_blocks_of_another_size_are_not_mixed_in(whole: Job, tmp_path: Path) -> None:
    job = job_in(tmp_path / "run")
    cell = job.cells[0]
    Worker(replace(job.place, batch=30)).make(cell, 0, 60)
    assert Samples(cell, 0, 90, last=True).run(Worker(job.place)).made == 90
    assert numbers(job)[0] == next(r for r in numbers(whole) if r["key"] == cell.key)


def test_a_failed_cell_is_an_outcome_and_the_worker_goes_on(tmp_path: Path) -> None:
    job = job_in(tmp_path / "run")
    broken = replace(job.cells[0], seed=-1)
    outcome = Samples(broken, 0, 90, last=True).run(worker := Worker(job.place))
    assert list(outcome.failed) == [broken.key]
    assert outcome.failed[broken.key].traceback.startswith("Traceback")
    assert Samples(job.cells[0], 0, 90, last=True).run(worker).failed == {}


def test_a_cell_of_one_block_writes_it_only_if_its_numbers_fail(tmp_path: Path) -> None:
    job = job_in(tmp_path / "run")
    place, cell = replace(job.place, batch=90), job.cells[0]
    chunks, worker = job.store.folder / "chunks" / cell.key, Worker(place)
    metric = next(iter(worker._metrics_of(cell).values()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metric, "evaluate", lambda features, times: 1 / 0)
        outcome = Samples(cell, 0, 90, last=True).run(worker)
    assert "ZeroDivisionError" in outcome.failed[cell.key].traceback
    assert [path.name for path in chunks.iterdir()] == ["0-90.npz"]
    assert Samples(cell, 0, 90, last=True).run(Worker(place)).made == 0
    assert job.store.has(cell.key)
    assert not chunks.exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Worker, "_write", lambda *_: 1 / 0)
        assert Samples(job.cells[1], 0, 90, last=True).run(Worker(place)).failed == {}


@pytest.mark.parametrize("keep", ["features", "float16", "moments", "nothing"])
def test_what_is_kept_changes_no_number(whole: Job, tmp_path: Path, keep: str) -> None:
    job = job_in(tmp_path / "run", How(keep=keep))
    assert job.run("a test") == []
    assert numbers(job) == numbers(whole)
    cell = job.cells[0]
    kept, states = job.store.sidecar(cell.key), whole.store.sidecar(cell.key)["states"]
    if keep == "features":
        np.testing.assert_array_equal(kept["states"], states)
    elif keep == "float16":
        assert kept["states"].dtype == np.float16
        np.testing.assert_allclose(kept["states"], states, rtol=1e-3, atol=1e-3)
    elif keep == "moments":
        np.testing.assert_allclose(kept["states.mean"], states.astype(float).mean(0), atol=1e-12)
        np.testing.assert_allclose(kept["states.covariance"], np.cov(states.astype(float).T), atol=1e-12)
        assert kept["states.n"] == 90
    else:
        assert kept == {}


def test_half_the_bytes_where_they_hold_the_numbers(tmp_path: Path) -> None:
    from bench.keeping import kept

    layers = {"small": np.array([[0.1, 2.0]], "f4"), "large": np.array([[1e6, 2.0]], "f4")}
    found = kept(layers, "float16")
    assert {name: array.dtype for name, array in found.items()} == {"small": np.float16, "large": np.float32}


def test_a_sweep_goes_on_with_the_blocks_that_are_there(whole: Job, tmp_path: Path) -> None:
    job = job_in(tmp_path / "run")
    first = job.cells[0]
    Worker(job.place).make(first, 0, 40)
    made: dict[str, int] = dict.fromkeys((cell.key for cell in job.cells), 0)

    def seen(cell: object, outcome: object) -> None:
        made[cell.key] += outcome.made  # type: ignore[attr-defined]

    assert job.run("a test", seen) == []
    assert made == {cell.key: 50 if cell is first else 90 for cell in job.cells}
    assert numbers(job) == numbers(whole)


def test_blocks_that_outlived_their_record_go_when_the_folder_is_opened(tmp_path: Path) -> None:
    job = job_in(tmp_path / "run")
    assert job.run("a test") == []
    for cell in job.cells:
        job.store.put_block(cell.key, (0, 20), {"states": np.zeros(3)})
    job.store.put_block("f" * 64, (0, 20), {"states": np.zeros(3)})
    job.open()
    assert [path.name for path in (job.store.folder / "chunks").iterdir()] == ["f" * 64]


def test_blocks_are_sealed(tmp_path: Path) -> None:
    job = job_in(tmp_path / "run")
    Worker(job.place).make(job.cells[0], 0, 20)
    (path,) = (job.store.folder / "chunks" / job.cells[0].key).iterdir()
    assert {"states", "about"} <= read_arrays(path).keys()
    assert b"seal" in path.read_bytes()
