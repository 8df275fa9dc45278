"""What cells cost, as people read it: columns, the leaderboard, the window in which a speed counts."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure

from bench.cells import Subjects, cells
from bench.checkpoints import load
from bench.errors import UsageError
from bench.report import write_report
from bench.report.costs import against_latency, cost_columns, costs, judged
from bench.report.plots import with_looks
from bench.runner import prepare
from bench.spec import Latency, Sweep
from bench.store import Store
from solvers import UnknownNameError
from tests.bench.common import read_sweep

WINDOW = {"metric": "frechet_exact", "low": 0.2, "high": 0.6}


def measurement(key: str = "k", session: str = "s", ms: float = 4.0, **memory: float) -> dict[str, Any]:
    def timed(batch: int) -> dict[str, Any]:
        total = ms * batch**0.5
        spread = {"iqr_ms": 0.2, "p90_ms": 1.1 * total, "cpu_ms": total}
        of_network = {"network_ms": 0.8 * total, "overhead_ms": 0.2 * total, "overhead_iqr_ms": 0.1}
        return {"batch": batch, "median_ms": total, "samples_per_s": 1e3 * batch / total} | spread | of_network

    return {
        "key": key,
        "latency": [timed(1), timed(64)],
        "memory": {"of": "peak resident set", "peak_mib": 300.0, "above_weights_mib": 20.0, "batch": 64} | memory,
        "session": {
            "id": session,
            "rounds": 5,
            "machine": {"device": "CPU, a quiet one", "threads": 2},
            "apart": {"vae": [{"median_ms": 7.0}, {"median_ms": 90.0}]},
        },
    }


def table(values: dict[str, float], window: dict[str, Any] | None = WINDOW, **others: Any) -> pd.DataFrame:
    """Solvers at 5 calls and their values, each measured in a session that `others` may name."""
    rows = [
        {"key": name, "solver": name, "nfe": 5, "adaptive": False, "metric": "frechet_exact", "value": value}
        | {"se": 0.01, "better": "lower", "n": 100}
        | cost_columns(measurement(name, others.get(name, "s"), ms=4.0 + k))
        for k, (name, value) in enumerate(values.items())
    ]
    return judged(pd.DataFrame(rows), window)


def test_columns_are_those_of_batch_1_and_of_the_best() -> None:
    found = cost_columns(measurement())
    assert (found["latency_batch1_ms"], found["latency_best_ms"], found["best_batch"]) == (4, 32, 64)
    assert (found["network_best_ms"], found["solver_overhead_best_ms"]) == pytest.approx((25.6, 6.4))
    assert (found["throughput_per_s"], found["apart_vae_best_ms"]) == (2000, 90)
    assert (found["memory_above_weights_mib"], found["memory_reserved_above_weights_mib"]) == (20, None)
    assert cost_columns(None) == {}


@pytest.mark.parametrize(
    ("value", "speed"),
    [
        (0.2, "counts"),
        (0.6, "counts"),
        (0.199, "does not count: below"),
        (0.601, "does not count: above"),
        (float("nan"), "not judged"),
    ],
)
def test_a_window_has_two_sides_and_holds_its_ends(value: float, speed: str) -> None:
    assert table({"ddim": value})["speed"].tolist() == [speed]


def test_without_a_window_nothing_is_judged_and_nothing_struck() -> None:
    found = table({"ddim": 0.4}, window=None)
    assert found["speed"].tolist() == ["not judged"]
    assert "~~" not in "\n".join(costs(found, None))


def test_a_cell_without_the_windows_number_is_not_judged() -> None:
    found = judged(table({"ddim": 0.4}), WINDOW | {"metric": "trajectory_rmse"})
    assert found["speed"].tolist() == ["not judged"]


def test_every_row_of_a_cell_has_its_verdict() -> None:
    rows = table({"ddim": 0.4})
    both = judged(pd.concat([rows, rows.assign(metric="trajectory_rmse", value=9.0)]), WINDOW)
    assert both["speed"].tolist() == ["counts", "counts"]


def test_speeds_outside_the_window_are_struck_out_with_their_side() -> None:
    text = "\n".join(costs(table({"good": 0.4, "rough": 0.9, "smooth": 0.1}), WINDOW))
    assert "| good | 4 ± 0.1 |" in text
    assert "| rough | ~~5 ± 0.1~~ ↑ |" in text
    assert "| smooth | ~~6 ± 0.1~~ ↓ |" in text
    assert "`frechet_exact` lies between 0.2 and 0.6" in text
    assert "| good | +25.0 ± 1.6 |" in text  # of the network's time
    assert "| rough | ~~1600~~ ↑ |" in text  # samples a second
    assert "vae takes 7 ms at batch 1 and 90 at batch 64" in text


def test_numbers_of_several_sessions_are_said_to_be() -> None:
    assert "sessions" not in "\n".join(costs(table({"a": 0.4, "b": 0.4}), None))
    assert "come from 2 sessions" in "\n".join(costs(table({"a": 0.4, "b": 0.4}, b="another"), None))


def test_a_gpus_reserved_memory_has_its_own_grid() -> None:
    rows = pd.DataFrame([{"memory_reserved_above_weights_mib": 55.0}], index=[0])
    found = table({"ddim": 0.4}).assign(**rows.iloc[0])
    assert "MiB that the allocator reserved" in "\n".join(costs(found, None))
    assert "reserved" not in "\n".join(costs(table({"ddim": 0.4}), None))


def test_the_front_is_of_speeds_that_count() -> None:
    """`first` is fastest and best of all, but outside the window; `slow` is beaten."""
    rows = table({"first": 0.1, "good": 0.4, "better": 0.3, "slow": 0.5})
    axes = Figure().subplots()
    against_latency(axes, with_looks(rows), WINDOW)
    [front] = [line for line in axes.lines if line.get_label() == "Pareto front"]
    assert list(front.get_ydata()) == [0.4, 0.3]
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "white" and len(line.get_ydata())]
    assert [list(line.get_ydata()) for line in hollow] == [[0.1]]


# Sweep files.


def refusal(text: str, folder: Path) -> str:
    (folder / "sweep.yaml").write_text(text)
    with pytest.raises(UsageError) as caught:
        read_sweep(folder / "sweep.yaml", {})
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quality: {metric: frechet_exact, low: 0.6, high: 0.2}", "low must lie below high"),
        ("quality: {metric: frechet_exact, low: 0.2, high: 0.2}", "low must lie below high"),
        ("quality: {metric: frechet_exact, low: 0.2}", "quality.high"),
        ("quality: {metric: frechet_exact, low: 0.2, high: .inf}", "quality.high = inf"),
        ("quality: {metric: frechet_exact, lo: 0.2, high: 0.3, low: 0}", "quality: unknown key 'lo'"),
        ("quality: 3", "quality = 3"),
        ("latency: {rounds: 4}", "latency.rounds = 4"),
        ("latency: {threads: 0}", "latency.threads = 0"),
        ("latency: {max_batch: 0}", "latency.max_batch = 0"),
        ("latency: {seconds: 0}", "latency.seconds = 0"),
        ("latency: {round: 5}", "latency: unknown key 'round': did you mean 'rounds'?"),
        ("latency: quickly", "latency = 'quickly'"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_key(tmp_path: Path, text: str, message: str) -> None:
    refused = refusal(f"checkpoint: gmm\n{text}\n", tmp_path)
    assert "sweep.yaml, line 2: " in refused
    assert message in refused
    assert "\n" not in refused


@pytest.mark.parametrize(
    ("value", "latency"),
    [(True, Latency()), (False, None), ({}, Latency()), ({"rounds": 7, "threads": 1}, Latency(rounds=7, threads=1))],
    ids=str,
)
def test_latency_is_a_switch_or_a_mapping(value: object, latency: Latency | None) -> None:
    assert Sweep(latency=value).latency == latency


@pytest.mark.parametrize("metric", ["trajectory_rms", "frechet_pixels", "trajectory"])
def test_a_window_on_a_number_that_the_sweep_lacks_is_refused(tmp_path: Path, metric: str) -> None:
    sweep = Sweep(checkpoint="gmm", solvers=("ddim",), nfe=(5,), quality=WINDOW | {"metric": metric})
    with pytest.raises(UnknownNameError, match=f"window '{metric}'.*known: frechet_exact, trajectory_rmse"):
        prepare(sweep, tmp_path / "run", "cpu")
    assert list(tmp_path.iterdir()) == []


def test_neither_window_nor_latency_changes_a_cell() -> None:
    gmm = load("gmm")

    def key(**others: Any) -> str:
        return cells(Sweep(checkpoint="gmm", solvers=("ddim",), nfe=(5,), **others), Subjects(gmm))[0][0].key

    assert key() == key(quality=WINDOW) == key(latency={"rounds": 9})


def test_a_run_without_measurements_reports(tmp_path: Path) -> None:
    """As those from before there were any: with numbers of another kind in the cells' records."""
    fields: dict[str, Any] = {"checkpoint": "gmm", "solvers": ("ddim", "dpmpp_2m"), "nfe": (5,), "samples": 40}
    job = prepare(Sweep(**fields, quality=WINDOW, latency=False), tmp_path / "run", "cpu")
    job.open()
    assert job.run("a test", lambda cell, samples: None) == []
    assert (job.unmeasured, job.measure(lambda text: None)) == ([], [])
    store = Store(tmp_path / "run")
    for record in list(store.records()):
        store.put(record["key"], record | {"latency": [{"batch": 256, "median_ms": 3.0}], "memory": {}}, {})
    text = write_report(store).read_text()
    assert "## Costs" not in text
    found = pd.read_parquet(tmp_path / "run" / "table.parquet")
    assert set(found["speed"]) <= {"counts", "does not count: above", "does not count: below"}
    assert not (tmp_path / "run" / "latency.png").exists()
