"""Sweeps from Python: in a script, in a notebook's kernel, and what notebooks show."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient

import bench
from bench.store import Store
from solvers import UnknownNameError

SCRIPT = """
import bench

print("started")
table = bench.sweep(
    checkpoint="gmm", solvers=["ddim", {"dpmpp_2m": {"grid": ["karras", "logsnr"]}}], nfe=[5], samples=16,
    latency={"rounds": 5, "max_batch": 16, "seconds": 0.01}, out="run", progress=False,
)
table.to_pickle("table.pkl")
"""  # without `if __name__ == "__main__"`, and with costs that are measured in processes of their own


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of the script, `run`, and the table that it was given."""
    folder = tmp_path_factory.mktemp("scripting")
    (folder / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "script.py"], cwd=folder, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "started\n", "")
    return folder


def mended(folder: Path) -> pd.DataFrame:
    """The script's sweep again, in this process."""
    settings = {"latency": {"rounds": 5, "max_batch": 16, "seconds": 0.01}}
    grids = ["ddim", "dpmpp_2m(grid=karras)", "dpmpp_2m(grid=logsnr)"]
    return bench.sweep(
        checkpoint="gmm", solvers=grids, nfe=range(5, 6), samples=16, settings=settings, out=folder / "run"
    )


def test_a_script_gets_the_table_that_the_folder_keeps(folder: Path) -> None:
    table = pd.read_pickle(folder / "table.pkl")
    pd.testing.assert_frame_equal(table, pd.read_parquet(folder / "run" / "table.parquet"))
    assert set(table["solver"]) == {"ddim", "dpmpp_2m(grid=karras)", "dpmpp_2m(grid=logsnr)"}
    assert (table["latency_batch1_ms"] > 0).all()
    assert table.attrs["results"] == ["run"]
    [run] = Store(folder / "run").runs()
    assert run["command"].startswith("bench.sweep(checkpoint='gmm', solvers=['ddim', {")


def test_only_what_is_missing_runs(folder: Path) -> None:
    cells = sorted((folder / "run" / "cells").iterdir())
    before = {path: path.stat().st_mtime_ns for path in cells}
    cells[0].unlink()
    pd.testing.assert_frame_equal(
        mended(folder).drop(columns=["commit"]), pd.read_pickle(folder / "table.pkl").drop(columns=["commit"])
    )
    assert {path for path in cells if path.stat().st_mtime_ns != before[path]} == {cells[0]}
    assert len(Store(folder / "run").runs()) == 2


def test_several_checkpoints_give_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweep.yaml").write_text(
        "checkpoint: [gmm, digits]\nsolvers: [ddim]\nnfe: [2]\nsamples: 8\nlatency: false\nmetrics: [trajectory]\n"
    )
    table = bench.sweep(tmp_path / "sweep.yaml", out=tmp_path / "out", progress=False)
    assert set(table["checkpoint"]) == {"gmm", "digits"}
    assert capsys.readouterr() == ("", "")
    results = bench.load(tmp_path / "out")
    assert repr(results).count("\n") == 1
    assert "n = 8" in results.board("trajectory_rmse", "gmm").to_html()
    with pytest.raises(UnknownNameError, match="unknown checkpoint 'gm': did you mean 'gmm'"):
        results.board(checkpoint="gm")
    with pytest.raises(UnknownNameError, match="unknown metric 'rmse'"):
        results.board("rmse")


def test_what_is_wrong_is_raised_and_nothing_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for wrong, says in (
        ({"nfe": [0]}, "nfe = 0"),
        ({"nfe": [5], "settings": {"nfe": [6]}}, "settings: nfe is given twice"),
        ({"settings": {"latencies": False}}, "unknown key 'latencies': did you mean 'latency'"),
        ({"file": "nowhere.yaml"}, "cannot read nowhere.yaml"),
        ({"device": "tpu"}, "give auto, cpu"),
    ):
        with pytest.raises(bench.UsageError, match=says):
            bench.sweep(**wrong)
    with pytest.raises(bench.UsageError, match="nowhere is not a results folder"):
        bench.load("nowhere")
    assert not list(tmp_path.iterdir())


def test_a_cell_that_fails_is_a_warning_and_the_others_are_there(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        'from solvers import solver\n\n@solver("wild", order=1, predicts="data", grids={})\ndef wild(p, grid):\n'
        "    x = p.start()\n    for i in range(grid.steps):\n        x = p.state(1e30 * p.model(x, i) + 1e30 * x)\n"
    )
    wild = f"{tmp_path}/mine.py:wild"
    with pytest.warns(RuntimeWarning, match="failed: gmm .*wild nfe=5: not finite"):
        table = bench.sweep(
            checkpoint="gmm", solvers=["ddim", wild], nfe=[5], samples=8, latency=False, out=tmp_path / "run"
        )
    assert set(table["solver"]) == {"ddim"}


def test_boards_show_value_error_and_ties_and_escape_names(folder: Path) -> None:
    results = bench.load(folder / "run")
    html = results.board().to_html()
    row = results.table.query("solver == 'ddim' and nfe == 5 and metric == 'frechet_exact'").iloc[0]
    assert f"{row['value']:.3g} ± " in html
    assert "font-weight: bold" in html
    assert "lower is better; n = 16, seed 0" in html
    shown = results._repr_html_()
    assert "<h3>gmm</h3>" in shown
    assert shown.count('src="data:image/png;base64,') == 1
    run = results.runs[0]
    run.board["solver"] = run.board["solver"].astype(str).replace("ddim", "<b>ddim</b>")
    assert "<b>" not in results._repr_html_()
    assert "&lt;b&gt;ddim" in results._repr_html_()


def test_a_notebook_shows_results_and_runs_sweeps(folder: Path) -> None:
    code = [
        "import bench",
        "bench.sweep(checkpoint='gmm', solvers=['ddim'], nfe=[5], samples=8, latency=False, out='notebook',\n"
        "            metrics=['trajectory'])[['metric', 'value']]",
        "bench.load('run')",
        "bench.load('run').board('trajectory_rmse')",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in code])
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    _, sweep, results, board = (cell["outputs"] for cell in notebook.cells)
    assert "trajectory_rmse" in sweep[-1]["data"]["text/html"]
    assert results[-1]["data"]["text/html"].startswith("<h3>gmm</h3>")
    assert "Trajectory error" in board[-1]["data"]["text/html"]
    assert not [item for outputs in (sweep, results, board) for item in outputs if item["output_type"] == "error"]


def test_importing_bench_loads_nothing_heavy() -> None:
    code = (
        "import sys, bench; assert {'load', 'sweep'} <= set(dir(bench));"
        "sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'pandas', 'solvers', 'pydantic', 'yaml')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'sweeep'"):
        _ = bench.sweeep
