"""Whole sweeps in processes: resume after kill -9, failures that do not stop the rest, exit codes, reports."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.chaos.nest import Nest

FEWSTEP = str(Path(sys.executable).parent / "fewstep")
DEFINITION = """
checkpoint: gmm
solvers: [ddim, heun, dpmpp_2m, "dpmpp_2m(grid=karras)"]
nfe: [5, 6, 7, 9, 11]
samples: 300
latency: false
"""
EXPLODING = '''
"""A solver that leaves every scale behind."""
from solvers import solver

@solver("exploding", order=1, predicts="data", grids={})
def exploding(p, grid):
    x = p.start()
    for i in range(grid.steps):
        x = p.state(1e30 * p.model(x, i) + 1e30 * x)
'''


def numbers(folder: Path) -> pd.DataFrame:
    """The table without what the clock and the machine put into it."""
    table = pd.read_parquet(folder / "table.parquet")
    return table[["key", "solver", "nfe", "counted_nfe", "metric", "value", "se", "n", "times"]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the definition and an uninterrupted run of it, `whole`, by the installed command."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "sweep.yaml").write_text(DEFINITION)
    command = [FEWSTEP, "sweep", "sweep.yaml", "--out", "whole"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


def test_help_answers_without_loading_torch(tmp_path: Path) -> None:
    code = "import sys, bench.cli; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'pandas', 'matplotlib')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0
    assert "sweep" in subprocess.run([FEWSTEP, "--help"], cwd=tmp_path, capture_output=True, text=True).stdout


def test_a_run_leaves_tables_plots_and_provenance(finished: Path) -> None:
    run = finished / "whole"
    table = pd.read_csv(run / "table.csv")
    pd.testing.assert_frame_equal(table[["solver", "nfe", "value"]], numbers(run)[["solver", "nfe", "value"]])
    assert set(table["metric"]) == {"frechet_exact", "trajectory_rmse", "trajectory_p95"}
    assert set(table[table["solver"] == "heun"]["nfe"]) == {5, 7, 9, 11}
    assert (table["nfe"] == table["counted_nfe"]).all()
    assert (table["se"] > 0).all()
    for name in ("quality", "truncation"):
        assert (run / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "</svg>" in (run / f"{name}.svg").read_text()
    assert "| dpmpp_2m(grid=karras) |" in (run / "leaderboard.md").read_text()
    runs = json.loads((run / "runs.json").read_text())
    assert runs[0]["command"] == "fewstep sweep sweep.yaml --out whole"
    assert runs[0]["environment"]["versions"]["torch"]


def test_killed_at_any_moment_the_same_command_finishes_the_rest_and_nothing_twice(finished: Path, forks: Nest) -> None:
    killed, cells = finished / "killed", finished / "killed" / "cells"
    for wanted in (1, 4, 9):  # kill again and again, each time a few cells further
        process = forks.start("sweep", "sweep.yaml", "--out", "killed", folder=finished)
        while process.wait(0) is None and len(list(cells.glob("*.json"))) < wanted:
            time.sleep(0.005)
        process.send(signal.SIGKILL)
    before = {path: path.stat().st_mtime_ns for path in cells.glob("*.json")}
    assert 9 <= len(before) < 19, "the kills came too late to prove anything"
    done = forks.answer("sweep", "sweep.yaml", "--out", "killed", cwd=finished)
    assert done.returncode == 0, done.stderr
    assert f"{19 - len(before)} cells to run, {len(before)} done" in " ".join(done.stderr.split())
    assert {path: path.stat().st_mtime_ns for path in before} == before
    pd.testing.assert_frame_equal(numbers(killed), numbers(finished / "whole"))


def test_another_definition_is_refused_by_a_finished_folder(finished: Path, forks: Nest) -> None:
    refused = forks.answer("sweep", "sweep.yaml", "--out", "whole", "--seed", "1", cwd=finished)
    assert refused.returncode == 2
    assert "was made by another sweep: its seed is [0], not [1]" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_a_failing_cell_is_recorded_and_the_rest_goes_on(tmp_path: Path, forks: Nest) -> None:
    (tmp_path / "exploding.py").write_text(EXPLODING)
    command = ("sweep", "--checkpoint", "gmm", "--samples", "50", "--nfe", "5")
    failed = forks.answer(*command, "--solvers", "exploding.py:exploding,ddim", "--out", "run", cwd=tmp_path)
    assert failed.returncode == 1
    assert "failed: gmm exploding.py:exploding nfe=5: not finite: 50 of 50 samples" in " ".join(failed.stderr.split())
    table = pd.read_parquet(tmp_path / "run" / "table.parquet")
    assert set(table["solver"]) == {"ddim"}
    [attempts] = [json.loads(path.read_text()) for path in (tmp_path / "run" / "attempts").iterdir()]
    assert attempts[0]["cause"].startswith("not finite")
    status = forks.answer("status", "run", cwd=tmp_path).stdout
    assert "1 cells done, 1 failed, 1 left" in status
    assert "exploding.py:exploding: 0 of 1; left: 5" in status
    assert "failed: exploding.py:exploding nfe=5: not finite" in status


def test_latency_and_memory_are_measured(tmp_path: Path, forks: Nest) -> None:
    few = ("--checkpoint", "gmm", "--samples", "50", "--nfe", "5", "--solvers", "ddim,dpmpp_2m,unipc")
    done = forks.answer("sweep", *few, "--set", "latency.max_batch=64", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = pd.read_parquet(tmp_path / "run" / "table.parquet")
    timed = [f"{what}_{at}_ms" for what in ("latency", "network", "solver_overhead") for at in ("batch1", "best")]
    assert np.isfinite(table[timed]).all().all()
    assert (table[[name for name in timed if "overhead" not in name]] > 0).all().all()
    assert (table["memory_above_weights_mib"] > 0).all()
    assert (table["throughput_per_s"] > 1e3 / table["latency_batch1_ms"]).all()
    assert (table["peak_memory_mib"] > 50).all()
    assert (tmp_path / "run" / "latency.png").exists()


def test_report_rewrites_the_same_files_from_records_alone(finished: Path, forks: Nest) -> None:
    run = finished / "whole"
    names = ["table.csv", "table.parquet", "leaderboard.md", "quality.png", "quality.svg"]
    before = {name: (run / name).read_bytes() for name in names}
    for name in names:
        (run / name).unlink()
    assert forks.answer("report", "whole", cwd=finished).returncode == 0
    assert {name: (run / name).read_bytes() for name in names} == before
