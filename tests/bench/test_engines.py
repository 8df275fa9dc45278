"""What comes out of a sweep is the same to the byte, whichever engine makes it, in what pieces and in what order."""

import errno
import json
import os
import pickle
import re
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import torch

import bench.executors.ray
from bench.cell import Sampler
from bench.errors import UsageError
from bench.executors import How
from bench.executors.apart import Apart
from bench.executors.ray import Ray, ray
from bench.executors.remote import pack
from bench.forkserver import ProcessDiedError
from bench.report.run import read_run
from bench.runner import Job, prepare
from bench.spec import Sweep
from bench.store import Store, content
from bench.worker import Outcome, Place, Samples
from solvers.registry import Registry
from tests.bench.works import Name, Raise, Tell, TellSampling
from tests.chaos.nest import Nest

BATCH = 40  # of 130 samples: blocks of 40, 40, 40 and 10
SWEEPS = {
    "gmm": {"solvers": ("ddim", "heun", "dpmpp_2m_sde", "dpm_solver_12"), "nfe": (3, 5), "seed": (0, 1)},
    "digits": {"solvers": ("dpmpp_2m", "ect_digits"), "nfe": (2, 5)},
}
BY_RAY = How(engine="ray", workers=2)
PLUGIN = '''
"""A solver that is no plan, and that no other process can import."""
from dataclasses import replace
from solvers import method
from solvers.dpm_solver_adaptive import Adaptive

class Mine(Adaptive):
    def __str__(self):
        return f"mine, of order {self.order}"

def mine(schedule):
    theirs = method("dpm_solver_12").build(schedule)
    return Mine(**{k: getattr(theirs, k) for k in ("method", "options", "order", "schedule", "times")})
'''


def job(out: Path, name: str = "gmm", how: How | None = None, **fields: Any) -> Job:
    given = {"checkpoint": name, "samples": 130, "latency": None} | SWEEPS[name] | fields
    return prepare(Sweep(**given), out, "cpu", BATCH, how)


def done(job: Job, blocks: int | None = None) -> Store:
    """What a job left behind, done in pieces of so many blocks."""
    job.open()
    if blocks:
        job.engine.piece = blocks * job.batch
    assert job.run("test") == []
    assert job.measure(lambda text: None) == []
    assert not (job.store.folder / "chunks").exists()
    return job.store


def assert_same(one: Store, other: Store) -> None:
    """Records to the byte but for what is volatile, sidecars to the bit, and tables but for times."""
    records, others = ({r["key"]: r for r in store.records()} for store in (one, other))
    assert records.keys() == others.keys()
    assert records
    for key, record in records.items():
        assert json.dumps(content(record)) == json.dumps(content(others[key])), record["cell"]["series"]
        mine, theirs = one.sidecar(key), other.sidecar(key)
        assert mine.keys() == theirs.keys()
        for name, array in mine.items():
            assert array.dtype == theirs[name].dtype
            assert array.tobytes() == theirs[name].tobytes(), (record["cell"]["series"], name)
    pd.testing.assert_frame_equal(*(numbers(store) for store in (one, other)), check_exact=True)


def numbers(store: Store) -> pd.DataFrame:
    table = read_run(store).table
    return table[[c for c in table if "seconds" not in c and c != "finished"]]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a Ray of two workers, each with a GPU that is not there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", "0" * 64)
        about = ray.init(address="local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)
        yield about.address_info["gcs_address"]
        ray.shutdown()


@pytest.fixture
def engine(cluster: str, tmp_path: Path) -> Callable[..., Ray]:
    def start(device: str = "cpu") -> Ray:
        place = Place("gmm", ("trajectory",), (), None, tmp_path, device, BATCH)
        return bench.executors.ray.start(BY_RAY, place)

    return start


@pytest.fixture(scope="module", params=list(SWEEPS))
def first(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A sweep by one worker of this process, block by block."""
    return done(job(tmp_path_factory.mktemp("first"), request.param, How(workers=1)))


def test_threads_order_and_pieces_leave_no_trace(first: Store, tmp_path: Path) -> None:
    name, before = first.definition()["checkpoint"], torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        turned = job(tmp_path / "turned", name, How(workers=1))
        assert_same(first, done(replace(turned, cells=turned.cells[::-1]), blocks=2))
        assert_same(first, done(job(tmp_path / "both", name, How(workers=2)), blocks=5))
        assert_same(first, done(job(tmp_path / "apart", name, How(workers=2, timeout=600)), blocks=5))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("blocks", [1, None])
def test_ray_leaves_no_trace(cluster: str, first: Store, tmp_path: Path, blocks: int | None) -> None:
    assert_same(first, done(job(tmp_path, first.definition()["checkpoint"], BY_RAY), blocks))


def test_one_cell_is_spread_over_all_workers(engine: Callable[..., Ray]) -> None:
    """Two tasks that take long enough run at once, in processes of their own with one thread each."""
    futures = [engine().submit(Tell(0.5)) for _ in range(4)]
    said = [tell(future) for future in futures]
    assert len({each["pid"] for each in said} | {str(os.getpid())}) == 3
    assert any(overlap(a, b) for a in said for b in said if a is not b)


def test_work_that_is_alone_has_nothing_beside_it(engine: Callable[..., Ray]) -> None:
    started = engine()
    futures = [started.submit(Tell(0.3), alone=i == 2) for i in range(5)]
    *others, alone = [tell(futures[i]) for i in (0, 1, 3, 4, 2)]
    assert not any(overlap(alone, other) for other in others)


def test_samples_are_made_on_one_thread_and_costs_on_the_drivers(engine: Callable[..., Ray], tmp_path: Path) -> None:
    before, [cell, *_] = torch.get_num_threads(), job(tmp_path / "out").cells
    torch.set_num_threads(2)
    try:
        started = engine()
    finally:
        torch.set_num_threads(before)
    assert tell(started.submit(Tell(), alone=True))["threads"] == "2"
    futures = [started.submit(TellSampling(cell, 0, 1, last=False)) for _ in range(4)]  # in both processes
    assert {tell(future)["threads"] for future in futures} == {"1"}


def test_errors_come_back_as_they_were(engine: Callable[..., Ray]) -> None:
    found = engine().submit(Raise(OSError(errno.ENOSPC, "no room"))).exception(60)
    assert type(found) is OSError
    assert found.errno == errno.ENOSPC


def test_a_process_apart_says_what_it_raised_and_is_gone_when_its_engine_is(tmp_path: Path) -> None:
    apart = Apart(Place("gmm", ("trajectory",), (), None, tmp_path, "cpu", BATCH))
    with pytest.raises(OSError, match="no room") as found:
        apart(Raise(OSError(errno.ENOSPC, "no room")))
    assert found.value.errno == errno.ENOSPC
    pid = int(apart(Tell()).failed["pid"].cause)
    assert psutil.pid_exists(pid)
    apart.end()
    with pytest.raises(ProcessDiedError, match="-9"):
        apart(Tell())
    assert not psutil.pid_exists(pid)


def test_what_a_plugin_defines_travels(engine: Callable[..., Ray], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    make = Registry("solver", "fewstep.none", {}).get(f"{tmp_path}/mine.py:mine")
    procedure = make(job(tmp_path / "out").checkpoint.schedule)
    (tmp_path / "mine.py").unlink()
    outcome = engine().submit(Name(procedure)).result(60)
    assert [(k, v.cause) for k, v in outcome.failed.items()] == [("mine, of order 2", "fewstep_plugin_mine")]


def test_costs_are_measured_by_a_worker(cluster: str, tmp_path: Path) -> None:
    given = {"solvers": ("ddim",), "nfe": (3,), "seed": (0,), "latency": {"rounds": 5, "seconds": 0.01}}
    store = done(job(tmp_path, how=BY_RAY, **given))
    [measurement] = store.measurements().values()
    assert measurement["session"]["machine"]["threads"] == torch.get_num_threads()


def test_a_worker_uses_the_gpu_that_ray_gave_it_and_not_the_drivers(engine: Callable[..., Ray]) -> None:
    started = engine("cuda:5")
    said = [tell(future) for future in [started.submit(Tell(0.4)) for _ in range(4)]]
    assert {each["device"] for each in said} == {"cuda:0", "cuda:1"}
    assert {each["hidden"] for each in said} == {"None"}
    assert all(a["device"] != b["device"] for a in said for b in said if a is not b and overlap(a, b))


def test_little_travels(tmp_path: Path) -> None:
    """A plan of 20 calls is 10 KB at most, also when this process has run it, and what comes back less than one."""
    found = job(tmp_path, "digits", solvers=("dpmpp_2m_sde", "unipc"), nfe=(20,), samples=50_000)
    for cell in found.cells:
        work = Samples(cell, 0, 2000, last=False)
        before, sampler = pack(work), Sampler(cell, found.checkpoint, found.device)
        sampler.draw(0, *sampler.inputs(0, 2))
        assert cell.plan.programs
        after = pack(work)
        assert max(len(before), len(after)) < 10_000
        again = pickle.loads(after)
        assert again.cell == cell
        assert again.cell.key == cell.key
    assert len(pickle.dumps(Outcome(2000))) < 1000


def test_an_address_that_is_no_clusters_is_refused_and_nothing_written(tmp_path: Path, forks: Nest) -> None:
    with socket.socket() as silent, socket.socket() as free:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        free.bind(("127.0.0.1", 0))
        nobody, mute = (f"127.0.0.1:{each.getsockname()[1]}" for each in (free, silent))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bench.executors.ray, "PATIENCE", 0.5)
            for address in (nobody, mute, "nowhere", "127.0.0.1:99999", "ray://127.0.0.1:x"):
                with pytest.raises(UsageError, match=re.escape(f"--address {address}: no cluster there")):
                    bench.executors.ray._connect(address)
        command = ["sweep", "--checkpoint", "gmm", "--engine", "ray", "--address", nobody, "--out", "run"]
        refused = forks.answer(*command, cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"fewstep: --address {nobody}: no cluster there (")
    assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_cluster_that_runs_is_used_and_left_running(cluster: str, tmp_path: Path, forks: Nest) -> None:
    sweep = ["sweep", "--checkpoint", "gmm", "--solvers", "ddim", "--nfe", "3", "--samples", "130", "--batch", "40"]
    where = ["--engine", "ray", "--address", cluster, "--workers", "1", "--out", "run"]
    made = forks.answer(*sweep, "--set", "latency=false", *where, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert_same(Store(tmp_path / "run"), done(job(tmp_path / "here", solvers=("ddim",), nfe=(3,), seed=(0,))))
    assert ray.is_initialized()
    assert [node["Alive"] for node in ray.nodes()] == [True]


def test_ctrl_c_in_a_terminal_lets_workers_finish_and_the_same_sweep_goes_on(tmp_path: Path, forks: Nest) -> None:
    sweep = ["sweep", "--checkpoint", "gmm", "--solvers", "ddim,unipc", "--nfe", "5,6,7", "--samples", "1000"]
    command = [*sweep, "--set", "latency=false", "--batch", "40", "--out", "run", "--engine", "ray", "--workers", "2"]
    process = forks.start(*command, folder=tmp_path, terminal=[])
    while process.wait(0.01) is None and not list(tmp_path.glob("run/chunks/*/*.npz")):
        pass
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.done() == 130, process.said()
    assert "nothing lost; to go on: fewstep sweep" in process.said()
    assert "Traceback" not in process.said()
    assert "\x1b" not in process.said()
    assert not (tmp_path / "run" / "attempts").exists()
    cells, blocks = (list(tmp_path.glob(f"run/{what}")) for what in ("cells/*.json", "chunks/*/*.npz"))
    assert len(cells) < 6
    assert cells or blocks
    given = {"solvers": ("ddim", "unipc"), "nfe": (5, 6, 7), "seed": (0,), "samples": 1000}
    assert_same(done(job(tmp_path / "run", **given)), done(job(tmp_path / "whole", **given)))


def tell(future: Future[Outcome]) -> dict[str, str]:
    return {name: failed.cause for name, failed in future.result(60).failed.items()}


def overlap(a: dict[str, str], b: dict[str, str]) -> bool:
    return float(a["begin"]) < float(b["end"]) and float(b["begin"]) < float(a["end"])
