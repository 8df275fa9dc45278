"""A measuring session: what it keeps when cells fail, when it is killed, and when it goes on."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.measure.record import summaries
from bench.runner import prepare
from bench.show import print_status
from bench.spec import Latency, Sweep
from bench.store import Store
from tests.bench.common import read_sweep
from tests.bench.costly import job
from tests.chaos.nest import Nest


@pytest.mark.parametrize("how", ["greedy", "dying"])
def test_memory_that_is_out_bounds_the_batch_and_nothing_else(plugin: str, tmp_path: Path, how: str) -> None:
    made = job(tmp_path, f"{plugin}:{how}")
    assert len(made.unmeasured) == 1
    assert made.measure(lambda text: None) == []
    assert made.unmeasured == []
    [found] = made.store.measurements().values()
    assert found["session"]["throughput"]["best_batch"] in (1, 2, 4)
    assert ("batch 8" in found["session"]["throughput"]["stopped"]) == (
        found["session"]["throughput"]["curve"][-1]["batch"] == 4
    )
    assert not (made.store.folder / "session.json").exists()


@pytest.mark.parametrize(
    ("how", "cause"), [("failing_at_half", "out of memory: no room"), ("dying_at_half", "ended with exit code -9")]
)
def test_a_cell_that_cannot_be_measured_keeps_its_record(
    plugin: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str, cause: str
) -> None:
    made = job(tmp_path, f"{plugin}:{how}", "ddim", "ddim(t_start=0.5)")
    good, bad = made.cells
    [failure] = made.measure(lambda text: None)
    assert failure.label == bad.label
    assert failure.cause.startswith("measuring: ")
    assert cause in failure.cause
    assert made.store.measurements().keys() == {good.key}
    assert [record["key"] for record in made.store.records()] == sorted([good.key, bad.key])
    [attempt] = made.store.failures(bad.key)
    assert (attempt["what"], attempt["cause"]) == ("measuring", failure.cause.removeprefix("measuring: "))
    print_status(made.store)
    status = capsys.readouterr().out
    assert "2 cells done, 0 failed, 0 left" in status
    assert "1 cells done and not measured" in status
    assert f"failed: {bad.solver} nfe=5: {attempt['cause']}" in status


def test_killed_between_rounds_a_session_goes_on_where_it_was(plugin: str, tmp_path: Path, forks: Nest) -> None:
    (tmp_path / "sweep.yaml").write_text(
        f"checkpoint: {plugin}:sleeping\nsolvers: [ddim, dpmpp_2m]\nnfe: [5]\nsamples: 4\n"
        "metrics: [frechet_exact]\nlatency: {seconds: 0.01, max_batch: 2, rounds: 9}\n"
    )
    session = tmp_path / "run" / "session.json"
    process = forks.start("sweep", "sweep.yaml", "--out", "run", folder=tmp_path)
    while process.wait(0) is None and not (session.exists() and len(json.loads(session.read_text())["rounds"]) >= 2):
        time.sleep(0.005)
    process.send(signal.SIGKILL)
    kept = json.loads(session.read_text())
    assert 2 <= len(kept["rounds"]) < 9, "the kill came too late to prove anything"
    store = Store(tmp_path / "run")
    left = prepare(read_sweep(tmp_path / "sweep.yaml", {}), store.folder, "auto")
    assert (left.pending, len(left.unmeasured)) == ([], 2)
    assert left.measure(lambda text: None) == []
    assert not session.exists()
    for key, found in store.measurements().items():
        before = summaries(kept["rounds"], key)
        assert found["session"]["id"] == kept["about"]["id"]
        assert (len(found["session"]["started"]), found["session"]["rounds"]) == (2, 9)
        for old, new in zip(before, found["latency"], strict=True):
            assert len(new["rounds"]["total_ms"]) == 9
            assert new["rounds"]["total_ms"][: len(kept["rounds"])] == old["rounds"]["total_ms"]


def test_another_machines_session_is_not_gone_on_with(tmp_path: Path) -> None:
    made = job(tmp_path, "gmm")
    about = {"id": "theirs", "machine": {"device": "another"}, "started": [], "load": []}
    made.store.put_session({"about": about, "cells": [made.cells[0].key]})
    assert made.measure(lambda text: None) == []
    [found] = made.store.measurements().values()
    assert found["session"]["id"] != "theirs"
    assert found["session"]["machine"]["threads"] == torch.get_num_threads()


def test_a_session_cut_off_while_it_wrote_its_measurements_writes_the_rest(tmp_path: Path) -> None:
    made = job(tmp_path, "gmm", "ddim", "dpmpp_2m")
    sessions = list[dict[str, Any]]()
    drop = Store.drop_session
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "drop_session", lambda store: (sessions.append(store.session()), drop(store)))
        made.measure(lambda text: None)
    lost = made.cells[0].key
    before = made.store.measurements()
    (made.store.folder / "latency" / f"{lost}.json").unlink()
    made.store.put_session(sessions[0])
    assert made.measure(lambda text: None) == []
    after = made.store.measurements()
    assert after[lost]["latency"] == before[lost]["latency"]
    assert after[lost]["session"]["id"] == before[lost]["session"]["id"]


def test_threads_are_those_asked_for(tmp_path: Path) -> None:
    made = prepare(
        Sweep(checkpoint="gmm", solvers=("ddim",), nfe=(5,), samples=4, metrics=("frechet_exact",),
              latency=Latency(threads=2, seconds=0.01, max_batch=2)),
        tmp_path / "run", "cpu",
    )  # fmt: skip
    made.open()
    made.run("a test", lambda cell, samples: None)
    assert made.measure(lambda text: None) == []
    [found] = made.store.measurements().values()
    assert found["session"]["machine"]["threads"] == 2
    assert [timed["batch"] for timed in found["latency"]] in ([1], [1, 2])


def test_an_estimate_knows_what_measuring_takes(tmp_path: Path) -> None:
    def seconds(latency: object) -> float:
        fields: dict[str, Any] = {"checkpoint": "gmm", "solvers": ("ddim", "dpmpp_2m"), "nfe": (5,), "samples": 4}
        return prepare(Sweep(**fields, latency=latency), tmp_path / "none", "cpu").estimate()

    assert seconds(False) < 5
    assert seconds({"seconds": 30}) > 60
