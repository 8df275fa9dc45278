"""Exports, read back with the tools that they are for."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow.entities import Run as Tracked
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from bench import cli
from bench.export import distinct, export, finite
from bench.report.run import Run, read_run
from bench.store import Store
from tests.bench.page_runs import write_run
from tests.bench.test_costs import measurement

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # of MLflow's own models
ODD = "../../up(path='/etc/x', a=1)"
SOLVERS = ("ddim", "unipc(a=1)", "unipc(a-1)", ODD)
ALL = {"ddim", "unipc-a-1-a1835ca4", "unipc-a-1-ca47fd9a", "up-path---etc-x---a-1", "cd"}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that kept images, and one of points."""
    folder = tmp_path_factory.mktemp("results")
    write_run(folder / "digits", solvers=SOLVERS, nfe=(2, 5))
    write_run(folder / "deep" / "gmm", checkpoint="gmm", solvers=("ddim",), nfe=(3,), shape=None)
    return folder


@pytest.fixture(scope="module")
def boards(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "boards"
    assert export(results, "tensorboard", out) == out
    return out


@pytest.fixture(scope="module")
def tracked(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "tracked"
    assert export(results, "mlflow", out) == out
    return out


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


def client(place: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{place / 'mlflow.db'}")


def runs_in(place: Path, name: str) -> list[Tracked]:
    there = client(place)
    return list(there.search_runs([there.get_experiment_by_name(name).experiment_id]))


def history(place: Path, run: Tracked, metric: str) -> list[tuple[float, int]]:
    return [(point.value, point.step) for point in client(place).get_metric_history(run.info.run_id, metric)]


def scalars(board: EventAccumulator, tag: str) -> dict[int, float]:
    return {event.step: event.value for event in board.Scalars(tag)}


def parameters(board: EventAccumulator) -> dict[str, object]:
    """What a series says of its options to the hparams plugin."""
    content = board.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    given = HParamsPluginData.FromString(content).session_start_info.hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in given.items()}


def test_tensorboard_has_a_series_a_solver_in_the_place_alone(boards: Path) -> None:
    assert {path.name for path in (boards / "digits").iterdir() if path.is_dir()} == ALL
    assert {path.name for path in (boards / "deep" / "gmm").iterdir() if path.is_dir()} == {"ddim", "cd"}
    assert {path.name for path in boards.parent.iterdir()} == {"boards"}
    assert {path.name for path in boards.iterdir()} == {"digits", "deep"}


def test_tensorboard_shows_every_number_with_its_error_over_calls(results: Path, boards: Path) -> None:
    run = read_run(Store(results / "digits"))
    solvers = {solver: boards / "digits" / name for solver, name in distinct(set(run.board["solver"])).items()}
    for (solver, metric), rows in run.board.groupby(["solver", "metric"]):
        board = read(solvers[solver])
        for tag, column in (("value", "value"), ("standard_error", "se")):
            expected = dict(zip(rows["nfe"].astype(int), rows[column], strict=True))
            assert scalars(board, f"{metric}/{tag}") == pytest.approx(expected, rel=1e-6)
        latency = dict(zip(rows["nfe"].astype(int), rows["latency_batch1_ms"], strict=True))
        assert scalars(board, "costs/latency_batch1_ms") == pytest.approx(latency, rel=1e-6)


def test_tensorboard_has_the_samples_where_they_were_kept(boards: Path) -> None:
    assert [image.step for image in read(boards / "digits" / "ddim").Images("samples")] == [2, 5]
    first = read(boards / "digits" / "ddim").Images("samples")[0]
    assert (first.width, first.height) == (71 * 3, 35 * 3)
    assert read(boards / "deep" / "gmm" / "ddim").Tags()["images"] == []


def test_tensorboard_lists_options(boards: Path) -> None:
    for name in ALL:
        found = parameters(read(boards / "digits" / name))
        assert found["checkpoint"] == "digits"
        assert found["guidance"] == 1.0
    assert parameters(read(boards / "digits" / "up-path---etc-x---a-1"))["solver"] == ODD
    content = read(boards / "digits").summary_metadata["_hparams_/experiment"].plugin_data.content
    experiment = HParamsPluginData.FromString(content).experiment
    assert {"solver", "checkpoint", "guidance", "samples"} <= {info.name for info in experiment.hparam_infos}
    assert "frechet_digits/value" in {info.name.tag for info in experiment.metric_infos}


def test_tensorboard_again_doubles_nothing_and_leaves_what_is_beside_it(results: Path, tmp_path: Path) -> None:
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "events").write_text("mine")
    for _ in range(2):
        export(results / "digits", "tensorboard", tmp_path)
        assert len(list((tmp_path / "digits").rglob("events*"))) == len(ALL) + 1
        assert len(read(tmp_path / "digits" / "ddim").Scalars("frechet_digits/value")) == 2
    assert (tmp_path / "training" / "events").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"digits", "training"}


def test_mlflow_has_an_experiment_a_folder_and_a_run_a_cell(results: Path, tracked: Path) -> None:
    run = read_run(Store(results / "digits"))
    found = {t.data.tags["fewstep.key"]: t for t in runs_in(tracked, "digits")}
    assert found.keys() == set(run.table["key"])
    assert {t.data.params["checkpoint"] for t in runs_in(tracked, "deep/gmm")} == {"gmm"}
    check_numbers(run, tracked, found)
    [odd] = [t for t in found.values() if t.data.params["solver"] == ODD and t.data.params["nfe"] == "5"]
    assert odd.info.run_name == f"{ODD} nfe=5 seed=0"
    assert odd.info.status == "FINISHED"
    assert pd.Timestamp(odd.info.end_time, unit="ms", tz="UTC").isoformat() == "2026-11-21T18:21:49+00:00"
    assert odd.data.tags["commit"] == "c0ffee"
    assert odd.data.tags["device"] == "CPU, a quiet one"
    assert odd.data.tags["frechet_digits.family"] == "f, against digits train"
    assert odd.data.params["digest"] == "d" * 64


def check_numbers(run: Run, place: Path, found: dict[str, Tracked]) -> None:
    for row in run.table.to_dict("records"):
        metrics = found[row["key"]].data.metrics
        assert metrics[row["metric"]] == row["value"]
        assert metrics[f"{row['metric']}.se"] == row["se"]
        assert metrics["latency_best_ms"] == row["latency_best_ms"]
    first = run.table.iloc[0]
    assert history(place, found[first["key"]], first["metric"]) == [(first["value"], first["nfe"])]


def test_mlflow_again_adds_what_is_new_alone(tmp_path: Path) -> None:
    store = write_run(tmp_path / "run", solvers=("ddim",), nfe=(2,), shape=None)
    place = export(tmp_path / "run", "mlflow", None)
    assert place == tmp_path / "run" / "mlflow"
    before = {t.data.tags["fewstep.key"]: t for t in runs_in(place, "run")}
    export(tmp_path / "run", "mlflow", None)
    key = next(key for key, t in before.items() if t.data.params["solver"] == "ddim")
    assert len(history(place, before[key], "precision")) == 1
    again = next(record for record in store.records() if record["key"] == key)
    store.put(key, again | {"finished": "2026-11-22T00:00:00+00:00"}, {})  # made again, to the same numbers
    store.put_measurement(key, measurement(key, ms=77.0))
    export(tmp_path / "run", "mlflow", None)
    after = {t.data.tags["fewstep.key"]: t for t in runs_in(place, "run")}
    assert {k: t.info.run_id for k, t in after.items()} == {k: t.info.run_id for k, t in before.items()}
    assert len(history(place, after[key], "precision")) == 1
    assert len(history(place, after[key], "latency_batch1_ms")) == 2
    assert (
        after[key].data.metrics["latency_batch1_ms"]
        == read_run(store).table.set_index("key").loc[key, "latency_batch1_ms"].max()
    )


def test_mlflow_takes_metrics_of_any_name(tmp_path: Path) -> None:
    names = {"prdc(k=3)", "prdc(k-3)", "a/b", "..", "é", "x" * 300, "fid(reference='/a/b')", "a\x00b"}
    store = write_run(tmp_path / "run", solvers=("ddim",), nfe=(2,), shape=None)
    for record in list(store.records()):
        values = [record["metrics"][0] | {"metric": name, "value": float(k)} for k, name in enumerate(sorted(names))]
        store.put(record["key"], record | {"metrics": values}, {})
    export(tmp_path / "run", "mlflow", None)
    for run in runs_in(tmp_path / "run" / "mlflow", "run"):
        found = [run.data.metrics[name] for _, name in sorted(distinct(names).items())]
        assert found == list(range(len(names)))


def test_a_number_that_is_not_known_or_not_finite_is_left_out(tmp_path: Path) -> None:
    store = write_run(tmp_path / "run", solvers=("ddim",), nfe=(2,), shape=None)
    for key in [record["key"] for record in store.records()]:
        unknown = {"of": "x", "peak_mib": None, "above_weights_mib": None}
        store.put_measurement(key, measurement(key, ms=1.0) | {"memory": unknown})
    export(tmp_path / "run", "tensorboard", None)
    tags = read(tmp_path / "run/tensorboard/run/ddim").Tags()["scalars"]
    assert "costs/latency_best_ms" in tags
    assert "costs/peak_memory_mib" not in tags
    assert finite({"a": 1, "b": None, "c": float("nan"), "d": float("inf"), "e": -0.5}) == {"a": 1.0, "e": -0.5}


def refused(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command line is refused with."""
    monkeypatch.setattr(sys, "argv", ["fewstep", "export", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["{results}/digits", "--to", "tensorbord", "--out", "new"], "did you mean 'tensorboard'?"),
        (["{results}/digits", "--to", "mlflow", "--out", "mine"], "mine holds other files"),
        (["{results}/digits", "--to", "tensorboard", "--out", "taken"], "taken/digits holds other files"),
        (["{results}/digits", "--to", "tensorboard", "--out", "afile/inside"], "afile is a file, not a folder"),
        (["{results}/digits", "--to", "mlflow", "--out", "afile"], "afile is a file, not a folder"),
        (["{results}/digits", "--to", "mlflow", "--out", "broken"], "MLflow cannot write it"),
        (["mine", "--to", "mlflow", "--out", "new"], "holds none: no sweep.json"),
        (["empty", "--to", "tensorboard", "--out", "new"], "holds no finished cell"),
        (["{results}/digits"], "Missing option '--to'"),
    ],
)
def test_what_is_refused_writes_nothing(
    arguments: list[str],
    why: str,
    results: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine/notes.txt", "taken/digits/notes.txt", "afile", "broken/mlflow.db"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("mine")
    Store(Path("empty")).open({"checkpoint": "gmm", "digest": "d", "cells": {}})
    before = {path: path.stat().st_size for path in tmp_path.rglob("*")}
    err = refused([text.format(results=results) for text in arguments], monkeypatch, capsys)
    assert why in err
    assert {path: path.stat().st_size for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(("to", "package"), [("mlflow", "alembic"), ("tensorboard", "tensorboard")])
def test_a_package_that_is_missing_is_named(
    to: str, package: str, results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # so that importing it fails
    err = refused([str(results / "digits"), "--to", to, "--out", str(results / "new")], monkeypatch, capsys)
    assert err == f"fewstep: --to {to} needs {package}: pip install 'fewstep[export]'\n"
    assert not (results / "new").exists()


def test_names_that_would_be_alike_are_told_apart() -> None:
    found = distinct({"a=1", "a-1", "b", "x" * 90, "x" * 90 + "y"})
    assert len(set(found.values())) == 5
    assert found["b"] == "b"
    assert np.max([len(name) for name in found.values()]) < 80
