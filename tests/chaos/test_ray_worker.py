"""Workers of Ray that vanish in the middle of a task: it is done again, and fails when they always do."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import bench.executors.ray
from bench.executors import How
from bench.executors.ray import ray
from bench.runner import prepare
from bench.spec import Sweep
from bench.store import Store, content

NETWORK = '''
"""The mixture of gmm, whose process is killed at a call that a file beside this one names: once, or each time."""
import os
import signal
from dataclasses import replace
from pathlib import Path

from torch import nn

from bench.checkpoints import load

HERE = Path(__file__).parent


class Killed(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, t, y):
        for name in ("once", "always"):
            told = HERE / name
            if told.exists() and abs(float(told.read_text()) - float(t[0])) < 1e-5:
                with (HERE / "killed").open("a") as file:
                    file.write(f"{os.getpid()}\\n")
                if name == "once":
                    told.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        return self.inner(x, t, y)


def killed():
    gmm = load("gmm")
    return replace(gmm, network=Killed(gmm.network))
'''


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", "0" * 64)
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


def sweep(folder: Path, out: str, how: How | None = None) -> tuple[Store, list[str], list[float]]:
    """What three cells of three blocks each leave behind, the causes of those that failed, and times that only the
    second one's network is called at."""
    given = {"checkpoint": f"{folder}/networks.py:killed", "solvers": ("ddim",), "nfe": (3, 4, 5), "samples": 90}
    job = prepare(Sweep(**given, latency=None), folder / out, "cpu", 30, how)
    job.open()
    failures = job.run("test")
    times = [set(cell.plan.call_times) for cell in job.cells]
    return job.store, [failure.cause for failure in failures], sorted(times[1] - times[0] - times[2])


def records(store: Store) -> dict[str, str]:
    return {record["key"]: json.dumps(content(record)) for record in store.records()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "networks.py").write_text(NETWORK)
    return tmp_path


def test_a_task_whose_worker_is_killed_is_done_again_with_the_same_bytes(folder: Path) -> None:
    whole, failed, times = sweep(folder, "whole")
    assert not failed
    (folder / "once").write_text(repr(times[0]))
    store, failed, _ = sweep(folder, "killed-once", How(engine="ray", workers=2))
    assert len((folder / "killed").read_text().split()) == 1
    assert not failed
    assert records(store) == records(whole)
    assert all(
        store.sidecar(k)[n].tobytes() == a.tobytes() for k in records(whole) for n, a in whole.sidecar(k).items()
    )


def test_a_task_whose_workers_are_all_killed_fails_and_the_rest_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench.executors.ray, "RETRIES", 1)
    whole, _, times = sweep(folder, "whole")
    (folder / "always").write_text(repr(times[0]))
    store, failed, _ = sweep(folder, "killed-always", How(engine="ray", workers=2))
    assert len((folder / "killed").read_text().split()) == 2
    [cause] = failed
    assert cause.startswith("WorkerLostError: its worker vanished 2 times")
    assert "\n" not in cause
    left = records(whole).items() - records(store).items()
    assert len(records(store)) == 2
    [(key, _)] = left
    assert store.failures(key)[-1]["cause"] == cause
    (folder / "always").unlink()
    assert records(sweep(folder, "killed-always")[0]) == records(whole)
    said = capfd.readouterr()
    assert "raylet" not in said.out + said.err
