"""Cells without a budget and cells guided by intervals or CFG++: one cell, its calls counted, its numbers shown."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from bench.cell import run
from bench.cells import Subjects, cells
from bench.checkpoints import Guide, load
from bench.errors import UsageError
from bench.report import write_report
from bench.report.frame import tidy
from bench.report.leaderboard import leaderboard
from bench.report.scores import over_seeds
from bench.runner import Job, prepare
from bench.show import print_plan, print_status
from bench.spec import ADAPTIVE_NFE, Cell, Sweep
from bench.store import Store
from tests.bench.common import make_metrics, read_sweep

GMM = load("gmm")
CPU = torch.device("cpu")
N = 40
ADAPTIVE = "dpm_solver_12(rtol=0.02, atol=0.02)"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "run")


def sweep_of(*solvers: str, **others: Any) -> Sweep:
    fields = {"checkpoint": "gmm", "solvers": solvers, "nfe": (5, 8), "samples": N, "latency": False}
    return Sweep(**(fields | others))


def cell_of(solver: str, nfe: int = 8, **others: Any) -> Cell:
    (cell,), _ = cells(sweep_of(solver, nfe=(nfe,), **others), Subjects(GMM))
    return cell


def run_in(store: Store, cell: Cell, batch: int = N) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    return run(cell, GMM, make_metrics(cell, GMM, store, CPU), CPU, batch)


def finished(store: Store, sweep: Sweep) -> Job:
    """The sweep, run into the store's folder."""
    job = prepare(sweep, store.folder, "cpu")
    job.open()
    assert job.run("a test", lambda cell, samples: None) == []
    return job


@pytest.mark.parametrize("budgets", [(5,), (5, 8, 20)])
def test_an_adaptive_solver_is_one_cell_whatever_the_budgets(budgets: tuple[int, ...]) -> None:
    found, skipped = cells(sweep_of("ddim", ADAPTIVE, nfe=budgets), Subjects(GMM))
    assert [(c.solver, c.nfe) for c in found] == [*(("ddim", n) for n in budgets), (ADAPTIVE, None)]
    assert skipped == []
    assert found[-1].label == f"gmm {ADAPTIVE} nfe=adaptive"
    assert found[-1].expected_nfe == ADAPTIVE_NFE


def test_its_key_depends_on_its_options_and_ends_and_not_on_the_budgets() -> None:
    texts = [
        "dpm_solver_12",
        "dpm_solver_23",
        *(f"dpm_solver_12({o})" for o in ("rtol=0.1", "joint=true", "t_end=0.01")),
    ]
    assert len({cell_of(text).key for text in texts}) == len(texts)
    assert cell_of(ADAPTIVE, nfe=5).key == cell_of(ADAPTIVE, nfe=8).key
    assert cell_of("dpm_solver_12").key == cell_of("dpm_solver_12(control=official, rtol=0.05)").key


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dpm_solver_12(grid=karras)", "dpm_solver_12 chooses its own steps"),
        ("dpm_solver_12(rtol=0)", "rtol=0.0 must be positive"),
        ("dpm_solver_12(control=pid)", "control='pid' is none of official, integral"),
        ("dpm_solver_12(steps=3)", "has no option 'steps': it has rtol"),
        ("dpm_solver_12(t_end=2)", "strictly decreasing"),
    ],
)
def test_what_an_adaptive_solver_cannot_take_is_a_usage_error(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        cell_of(text)
    assert "\n" not in str(caught.value)


def test_the_record_holds_no_budget_and_the_mean_of_the_calls(store: Store) -> None:
    record, arrays = run_in(store, cell_of(ADAPTIVE))
    assert record["cell"]["nfe"] is None
    assert record["cell"]["times"] == (1.0, 1e-3)
    assert record["forwards_per_sample"] == record["counted_nfe"]
    assert 10 < record["counted_nfe"] < 200
    assert record["counted_nfe"] * N == pytest.approx(round(record["counted_nfe"] * N))
    assert record["counted_nfe"] % 2 != 0  # a mean of even counts that differ
    assert {m["metric"] for m in record["metrics"]} == {"frechet_exact", "trajectory_rmse", "trajectory_p95"}
    assert arrays["states"].shape == (N, 16)


@pytest.mark.parametrize("solver", [ADAPTIVE, "dpm_solver_23(control=integral)"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_samples_and_counts_do_not_depend_on_the_batch(store: Store, solver: str, guidance: float) -> None:
    cell = cell_of(solver, precision="fp64", guidance=guidance)
    (record, whole), (other, parts) = (run_in(store, cell, batch) for batch in (N, 7))
    np.testing.assert_allclose(parts["states"], whole["states"], rtol=0, atol=1e-10)
    for count in ("counted_nfe", "forwards_per_sample"):
        assert record[count] == other[count]
    assert record["forwards_per_sample"] == pytest.approx(record["counted_nfe"] * (1 if guidance == 1 else 2))


def test_a_smaller_tolerance_shows_in_the_trajectory_error(store: Store) -> None:
    errors, calls = [], []
    for tolerance in ("0.1", "0.01", "0.001"):
        record, _ = run_in(store, cell_of(f"dpm_solver_23(rtol={tolerance}, atol={tolerance})", precision="fp64"))
        errors += [m["value"] for m in record["metrics"] if m["metric"] == "trajectory_rmse"]
        calls.append(record["counted_nfe"])
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert calls == sorted(calls)


def test_a_table_row_is_marked_adaptive_and_its_budget_is_the_mean(store: Store) -> None:
    finished(store, sweep_of("ddim", ADAPTIVE))
    table = tidy(store.records())
    rows = {name: table[table["solver"] == name] for name in ("ddim", ADAPTIVE)}
    assert rows[ADAPTIVE]["adaptive"].all()
    assert not rows["ddim"]["adaptive"].any()
    assert set(rows["ddim"]["nfe"]) == {5, 8}
    counted = rows[ADAPTIVE]["counted_nfe"].iloc[0]
    assert set(rows[ADAPTIVE]["nfe"]) == {round(float(counted), 1)}
    assert len(rows[ADAPTIVE]) == 3  # a row a metric
    assert list(rows[ADAPTIVE]["t_end"].unique()) == [1e-3]


def test_the_leaderboard_gives_adaptive_solvers_a_table_of_their_own(store: Store) -> None:
    job = finished(store, sweep_of("ddim", ADAPTIVE, metrics=("frechet_exact",)))
    records = list(store.records())
    table = over_seeds(tidy(records), records)
    lines = leaderboard(table, pd.DataFrame(), job.definition).splitlines()
    small = lines.index("| adaptive solver | mean calls a sample | value |")
    row = table[table["adaptive"]].iloc[0]
    assert lines[small + 2].startswith(f"| {ADAPTIVE} | {row['nfe']:g} | {row['value']:.3g} ± ")
    assert lines.count("| solver | 5 | 8 |") == 2  # the numbers, and their extrapolation
    assert sum(ADAPTIVE in line for line in lines) == 1


def test_a_run_of_adaptive_solvers_alone_has_a_whole_report(store: Store) -> None:
    finished(store, sweep_of(ADAPTIVE, "dpm_solver_23"))
    text = write_report(store).read_text()
    assert text.count("| adaptive solver | mean calls a sample | value |") == 3  # one a metric
    assert "| solver |" not in text
    table = pd.read_parquet(store.folder / "table.parquet")
    assert table["adaptive"].all()
    assert (store.folder / "quality.png").exists()


def test_without_adaptive_solvers_there_is_no_such_table(store: Store) -> None:
    job = finished(store, sweep_of("ddim"))
    records = list(store.records())
    board = over_seeds(tidy(records), records)
    assert "adaptive" not in leaderboard(board, pd.DataFrame(), job.definition)


def test_a_done_adaptive_cell_is_not_run_again(store: Store) -> None:
    job = finished(store, sweep_of(ADAPTIVE))
    assert job.pending == []
    assert prepare(sweep_of(ADAPTIVE), store.folder, "cpu").pending == []


def test_plan_and_status_say_adaptive_instead_of_a_budget(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    job = prepare(sweep_of("ddim", "dpm_solver_12"), store.folder, "cpu")
    print_plan(job)
    assert re.search(r"dpm_solver_12 .* adaptive", capsys.readouterr().out)
    job.open()
    print_status(store)
    assert "dpm_solver_12: 0 of 1; left: adaptive" in capsys.readouterr().out


def guided(tmp_path: Path, text: str, solver: str = "ddim") -> Cell:
    """The cell of a sweep file on the mixture with these lines in it."""
    path = tmp_path / "sweep.yaml"
    path.write_text(f"checkpoint: gmm\nsolvers: ['{solver}']\nnfe: [8]\nsamples: {N}\nprecision: fp64\n{text}")
    (cell,), _ = cells(read_sweep(path, {}), Subjects(GMM))
    return cell


@pytest.mark.parametrize(
    ("text", "guide"),
    [
        ("", Guide()),
        ("guidance: 2.5\n", Guide(2.5)),
        ("guidance: 2.5\nguidance_interval: [0.2, 3]\n", Guide(2.5, (0.2, 3.0))),
        ("guidance: 2.5\nguidance_interval: null\n", Guide(2.5)),
        ("guidance: 0.6\ncfg_plus_plus: true\n", Guide(0.6, None, True)),
        ("guidance: 0.6\ncfg_plus_plus: yes\nguidance_interval: [0, 1]\n", Guide(0.6, (0.0, 1.0), True)),
    ],
)
def test_a_sweep_file_says_how_a_cell_is_guided(tmp_path: Path, text: str, guide: Guide) -> None:
    cell = guided(tmp_path, text)
    assert cell.task.guide == guide
    about = cell.to_dict()
    kept = about["guidance"], about["guidance_interval"], about["cfg_plus_plus"]
    assert kept == (guide.scale, guide.interval, guide.plus_plus)


def test_guides_of_one_scale_are_different_cells(tmp_path: Path) -> None:
    texts = ("", "guidance_interval: [0.2, 3]\n", "guidance_interval: [0.2, 4]\n", "cfg_plus_plus: true\n")
    assert len({guided(tmp_path, f"guidance: 0.6\n{text}").key for text in texts}) == 4


@pytest.mark.parametrize(
    ("interval", "forwards"), [("[0, 1000]", 16), ("[1000, 2000]", 8), ("[0.2, 3]", None), ("[1, 1000]", None)]
)
def test_an_interval_costs_a_second_forward_only_inside(
    tmp_path: Path, store: Store, interval: str, forwards: int | None
) -> None:
    cell = guided(tmp_path, f"guidance: 2.5\nguidance_interval: {interval}\n")
    low, high = (float(level) for level in interval.strip("[]").split(","))
    u = np.exp(-GMM.schedule.lam(cell.plan.times[:-1]))
    expected = 8 + int(((u > low) & (u <= high)).sum())
    assert expected == forwards or (forwards is None and 8 < expected < 16)
    record, _ = run_in(store, cell, 15)
    assert (record["counted_nfe"], record["forwards_per_sample"]) == (8, expected)


def samples(tmp_path: Path, store: Store, text: str) -> np.ndarray:
    return run_in(store, guided(tmp_path, text))[1]["states"]


def test_the_interval_reaches_the_network(tmp_path: Path, store: Store) -> None:
    everywhere, wide, part, nowhere, plain = (
        samples(tmp_path, store, text)
        for text in (
            "guidance: 2.5\n",
            "guidance: 2.5\nguidance_interval: [0, 1000]\n",
            "guidance: 2.5\nguidance_interval: [0.2, 3]\n",
            "guidance: 2.5\nguidance_interval: [1000, 2000]\n",
            "",
        )
    )
    np.testing.assert_array_equal(everywhere, wide)
    np.testing.assert_array_equal(nowhere, plain)
    assert min(abs(part - everywhere).max(), abs(part - plain).max()) > 1e-3


def test_cfg_plus_plus_reaches_the_network_with_the_plans_times(tmp_path: Path, store: Store) -> None:
    cell = guided(tmp_path, "guidance: 0.6\ncfg_plus_plus: true\n")
    record, arrays = run_in(store, cell)
    assert record["forwards_per_sample"] == 16
    x = GMM.latents(0, 0, N, 1.0)
    y = GMM.labels(0, 0, N)
    null, schedule = torch.full_like(y, len(GMM.classes)), GMM.schedule
    for t, s in zip(cell.plan.times, cell.plan.times[1:], strict=False):
        (a, sigma), (a_s, sigma_s) = ([float(f(u)) for f in (schedule.alpha, schedule.sigma)] for u in (t, s))
        eps_null, eps_cond = (GMM.network(x, torch.full((N,), t, dtype=torch.float64), label) for label in (null, y))
        x = a_s * (x - sigma * (eps_null + 0.6 * (eps_cond - eps_null))) / a + sigma_s * eps_null
    np.testing.assert_allclose(arrays["states"], x.flatten(1).numpy(), rtol=0, atol=1e-8)


def test_cfg_plus_plus_solves_no_ode_and_has_no_trajectory_error(tmp_path: Path, store: Store) -> None:
    plain, plus = (guided(tmp_path, f"guidance: 0.6\n{text}") for text in ("", "cfg_plus_plus: true\n"))
    found = [{m["metric"] for m in run_in(store, cell)[0]["metrics"]} for cell in (plain, plus)]
    assert found == [{"frechet_exact", "trajectory_rmse", "trajectory_p95"}, {"frechet_exact"}]


def test_the_table_says_how_its_cells_were_guided(store: Store) -> None:
    finished(store, sweep_of("ddim", guidance=0.6, guidance_interval=(0.25, 4), cfg_plus_plus=True))
    row = tidy(store.records()).iloc[0]
    assert (row["guidance"], row["guidance_interval"], row["cfg_plus_plus"]) == (0.6, "0.25 4", True)


BAD = {
    "guidance_interval": [
        "[3, 0.2]", "[1, 1]", "[-1, 2]", "[0.1]", "[0.1, 1, 2]", "wide", "[low, high]", "[0.1, .inf]", "[.nan, 1]",
        "0.5", "[0.1, null]",
    ],
    "cfg_plus_plus": ["perhaps", "3", "[true]", "null"],
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in BAD.items() for value in values])
def test_a_guide_that_makes_no_sense_is_refused_in_one_line(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(UsageError) as caught:
        guided(tmp_path, f"{key}: {value}\n")
    assert re.search(rf"sweep\.yaml, line 6: {key} = .+: .+", str(caught.value))
    assert "\n" not in str(caught.value)
