"""Work as Slurm jobs: what sbatch is told, and that no mishap of a job loses or changes a number."""

import re
import subprocess
import sys
import time
from concurrent.futures import wait
from pathlib import Path

import pytest
from rich.console import Console

from bench.errors import UsageError
from bench.executors import How, slurm
from bench.store import Store, content
from bench.sweeps import prepare_all, run_all
from bench.worker import Place
from solvers import UnknownNameError
from tests.bench import fake_slurm, jobs

SMALL = {"checkpoint": "gmm", "solvers": ["ddim"], "nfe": [3], "samples": 70, "latency": False}


def place(folder: Path, device: str = "cpu") -> Place:
    return Place("gmm", (), (), None, folder, device, 100)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with Slurm's commands; what it knows of jobs is in the folder."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(fake_slurm.install(folder)), prepend=":")
    monkeypatch.setitem(slurm.CLUSTERS, "slurm", slurm.Cluster(0.3, 0.0))
    return folder


def test_jobs_are_an_array_and_survive_what_happens_to_them(
    cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "TRIES", 2)
    given = {"partition": "gpu", "time": "1:30:00", "gpus_per_node": "2", "cpus_per_task": "1", "reservation": "ours"}
    engine = slurm.start(How("slurm", workers=7, slurm=given), place(tmp_path / "run"))
    engine.place = place(tmp_path / "run")  # no GPU is here
    notes = [tmp_path / name for name in ("once", "always", "preempted")]
    works = [jobs.Dies(notes[0], False), jobs.Dies(notes[1], True), jobs.Preempted(notes[2]), jobs.Full()]
    futures = [engine.submit(work) for work in works] + [engine.submit(jobs.Fine(4), alone=True)]
    assert not wait(futures, timeout=300).not_done
    engine.close()

    assert [futures[i].result().made for i in (0, 2, 4)] == [2, 3, 4]
    lost, full = futures[1].exception(), futures[3].exception()
    assert "sent 2 times" in str(lost)
    log = Path(str(lost).rpartition(" ")[2])
    assert log.is_file()
    assert isinstance(full, OSError)
    assert full.errno == 28

    array, apart = ((cluster / f"{i}.script").read_text() for i in (1, 2))
    lines = ["--array=0-3%4", "--requeue", "--gpus-per-node=2", "--partition=gpu", "--time=90", "--reservation=ours"]
    for line in [*lines, "--cpus-per-task=1", "--signal=USR2@90", "--job-name=fewstep"]:
        assert f"\n#SBATCH {line}\n" in array
    assert "--exclusive" not in array
    assert "\n#SBATCH --exclusive\n" in apart
    again = [path.read_text() for path in cluster.glob("*.script") if path.stem not in ("1", "2")]
    arrays = [re.search(r"--array=0-(\d+)%", script) for script in again]
    assert sum(int(array[1]) + 1 if array else 1 for array in arrays) == 2  # the two that were lost
    assert (cluster / "1_2.came-back").exists()


def test_sbatch_that_refuses_is_asked_again_and_then_believed(
    cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cluster / "sbatch").write_text('#!/bin/sh\necho "$0" >> asked; echo "invalid partition: nope" >&2; exit 1\n')
    monkeypatch.chdir(tmp_path)
    engine = slurm.start(How("slurm", slurm={"partition": "nope"}), place(tmp_path / "run"))
    error = engine.submit(jobs.Fine(1)).exception(timeout=60)
    engine.close()
    assert "invalid partition: nope" in str(error)
    assert len((tmp_path / "asked").read_text().splitlines()) == slurm.TRIES


def test_closing_ends_jobs_that_still_run(tmp_path: Path) -> None:
    engine = slurm.start(How("slurm", slurm={"cluster": "local"}), place(tmp_path / "run"))
    engine.submit(jobs.Long(tmp_path / "note"))
    until = time.monotonic() + 120
    while not (tmp_path / "note").exists():
        assert time.monotonic() < until
        time.sleep(0.1)
    engine.close()
    [sent] = engine._running
    until = time.monotonic() + 30
    while not sent.job.done():
        assert time.monotonic() < until
        time.sleep(0.1)
    left = subprocess.run(["pgrep", "-f", str(tmp_path / "run")], capture_output=True, text=True)
    assert left.stdout == ""


def test_a_sweep_by_jobs_has_the_same_records_and_sidecars(tmp_path: Path) -> None:
    hows = {"here": How(), "jobs": How("slurm", workers=2, slurm={"cluster": "local", "cpus_per_task": "1"})}
    for name, how in hows.items():
        job = prepare_all(None, SMALL, "cpu", tmp_path / name, 20, how)
        assert run_all(job, "fewstep sweep", Console(quiet=True), time.perf_counter()) == []
    here, there = (Store(tmp_path / name) for name in hows)
    assert [content(record) for record in here.records()] == [content(record) for record in there.records()]
    [key] = here.definition()["cells"]
    assert (here.cache / f"{key}.npz").read_bytes() == (there.cache / f"{key}.npz").read_bytes()
    assert list((tmp_path / "jobs/slurm").glob("*_result.pkl"))
    assert not (tmp_path / "jobs/chunks").exists()


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("30", 30), ("1:30", 2), ("4:00:00", 240), ("1-12", 2160), ("1-12:30", 2190), ("2-0:0:1", 2881), ("0:01", 1)],
)
def test_times_are_slurms(text: str, minutes: int) -> None:
    assert slurm.parameters_of({"time": text})["timeout_min"] == minutes


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"time": "soon"}, "--slurm time=soon"),
        ({"time": "0"}, "a minute or more"),
        ({"gpus_per_node": "many"}, "gpus_per_node=many: give a whole number"),
        ({"cpus_per_task": "-1"}, "cpus_per_task=-1"),
        ({"partition": ""}, "partition=''"),
        ({"partition": "gpu\n#SBATCH --uid=0"}, r"'gpu\\n#SBATCH"),
        ({"partitoin": "gpu"}, "did you mean 'partition'"),
        ({"cluster": "locl"}, "did you mean 'local'"),
        ({"cluster": "slurm"}, "no sbatch and srun here"),
    ],
    ids=str,
)
def test_what_sbatch_would_not_understand_is_refused(
    given: dict[str, str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    settings = {"cluster": "local"} | given
    with pytest.raises((UsageError, UnknownNameError), match=words):
        slurm.start(How("slurm", slurm=settings), place(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def test_jobs_that_are_given_gpus_use_them(tmp_path: Path) -> None:
    local = {"cluster": "local"}
    assert slurm.start(How("slurm", slurm=local), place(tmp_path)).place.device == "cpu"
    assert slurm.start(How("slurm", slurm=local | {"gpus_per_node": "1"}), place(tmp_path)).place.device == "cuda"
    assert slurm.start(How("slurm", slurm=local), place(tmp_path, "cuda:1")).parameters["gpus_per_node"] == 1


def test_without_submitit_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    monkeypatch.delitem(sys.modules, "bench.executors.slurm")
    with pytest.raises(UsageError, match=r"needs the package submitit: pip install 'fewstep\[slurm\]'"):
        How("slurm").start(lambda: pytest.fail("no worker is needed here"), place(tmp_path))
