"""Groups that cannot be told apart, one number over seeds, and what the report makes of them, from records on disk."""

import json
import re
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import cli
from bench.rank import describe, letters, rank, separate
from bench.report import write_report
from bench.report.frame import tidy
from bench.report.leaderboard import leaderboard
from bench.report.scores import over_seeds, scores
from bench.stats import parts_of
from bench.store import Store

N = 400
LEVELS = {"good": 1.0, "alike": 1.002, "worse": 1.05}  # means; noise is shared and ten times as large as what is not


def value(metric: str, x: np.ndarray, better: str, limit: bool) -> dict[str, Any]:
    se = float(x.std(ddof=1) / len(x) ** 0.5)
    return {
        "metric": metric, "value": float(x.mean()), "se": se, "n": len(x), "family": "f", "better": better,
        "reference": {"data": "some", "sha256": "0"}, "parts": parts_of(x - x.mean()),
        "at_infinity": [float(x.mean()) - 0.1, se] if limit else None,
    }  # fmt: skip


def record(solver: str, nfe: int | None, seed: int, better: str, bad_seed: bool = False) -> dict[str, Any]:
    shared = np.random.default_rng([seed, nfe or 0]).normal(size=N) + 5 * bad_seed * seed
    own = np.random.default_rng([seed, nfe or 0, *map(ord, solver)]).normal(size=N)
    x = LEVELS.get(solver, 2.0) + shared + 0.1 * (own - own.mean())  # so that differences are exactly those of LEVELS
    cell = {
        "checkpoint": "gmm", "digest": "d" * 12, "solver": solver, "guidance": 1.0, "guidance_interval": None,
        "cfg_plus_plus": False, "samples": N, "seed": seed, "dtype": "float32", "order": 1, "nfe": nfe,
        "times": [1.0, 0.0], "learned_from": None,
    }  # fmt: skip
    return {
        "key": f"{solver}-{nfe}-{seed}", "cell": cell, "counted_nfe": nfe or 30 + seed, "forwards_per_sample": 1,
        "metrics": [value("frechet_exact", x, better, True), value("energy", x, "lower", False)],
        "environment": {"device": "CPU", "threads": 1, "commit": None},
    }  # fmt: skip


def store_of(folder: Path, records: list[dict[str, Any]]) -> Store:
    (folder / "cells").mkdir(parents=True)
    for r in records:
        (folder / "cells" / f"{r['key']}.json").write_text(json.dumps(r))
    cells = {r["key"]: [r["cell"]["solver"], r["cell"]["nfe"]] for r in records}
    about = {"checkpoint": "gmm", "digest": "d" * 12, "samples": N, "seed": [0], "guidance": 1.0, "dtype": "float32"}
    (folder / "sweep.json").write_text(json.dumps(about | {"cells": cells}))
    return Store(folder)


def run_of(
    folder: Path, solvers: tuple[str, ...] = tuple(LEVELS), seeds: tuple[int, ...] = (0,), better: str = "lower"
) -> Store:
    return store_of(folder / "run", [record(s, nfe, seed, better) for s in solvers for nfe in (5, 8) for seed in seeds])


def test_shared_noise_tells_apart_what_its_errors_alone_would_not(tmp_path: Path) -> None:
    ranking = rank(run_of(tmp_path))
    assert (ranking.metric, ranking.better, [b.nfe for b in ranking.budgets]) == ("frechet_exact", "lower", [5, 8])
    for budget in ranking.budgets:
        good, worse = budget.scores[0].estimate, budget.scores[-1].estimate
        assert abs(good.value - worse.value) < 2 * np.hypot(good.se, worse.se)
        assert budget.letters == {"good": "a", "alike": "a", "worse": "b"}
    text = "\n".join(describe(ranking))
    assert "6 pairs" in text
    assert "frechet_exact, lower is better; n = 400, seed 0" in text


def test_higher_is_better_turns_the_order(tmp_path: Path) -> None:
    budget = rank(run_of(tmp_path, better="higher")).budgets[0]
    assert budget.scores[0].solver == "worse"
    assert budget.letters == {"worse": "a", "alike": "b", "good": "b"}


def test_one_budget_means_fewer_pairs_to_adjust_for(tmp_path: Path) -> None:
    store = run_of(tmp_path)
    both, one = rank(store), rank(store, nfe=[8])
    assert [b.nfe for b in one.budgets] == [8]
    assert all(one.budgets[0].p[pair] <= both.budgets[1].p[pair] for pair in one.budgets[0].p)
    assert one.budgets[0].p != both.budgets[1].p


def test_adaptive_solvers_are_left_out_and_named(tmp_path: Path) -> None:
    records = [record(s, 5, 0, "lower") for s in LEVELS] + [record("free", None, 0, "lower")]
    lines = describe(rank(store_of(tmp_path / "run", records)))
    assert lines[-1].endswith("free")
    assert sum("free" in line for line in lines) == 1


names = st.integers(2, 7).map(lambda n: [f"s{i}" for i in range(n)])


@given(names, st.data())
def test_solvers_share_a_letter_exactly_when_they_are_not_told_apart(found: list[str], data: st.DataObject) -> None:
    pairs = list(combinations(found, 2))
    p = dict(zip(pairs, data.draw(st.lists(st.sampled_from([0.001, 0.4]), min_size=len(pairs), max_size=len(pairs)))))  # noqa: B905
    given_letters = letters(found, p)
    assert given_letters[found[0]].startswith("a")
    for a, b in pairs:
        assert bool(set(given_letters[a]) & set(given_letters[b])) == (p[a, b] >= 0.05)
    groups = {k: {s for s in found if k in given_letters[s]} for k in "".join(given_letters.values())}
    assert not any(one < other for one in groups.values() for other in groups.values())


def test_a_score_is_its_first_seeds_row_and_has_a_limit_where_all_seeds_do() -> None:
    records = [record("good", 5, seed, "lower") for seed in (2, 0, 1)]
    found = {score.metric: score for score in scores(records)}
    assert found["frechet_exact"].keys == ("good-5-0", "good-5-1", "good-5-2")
    assert found["frechet_exact"].at_infinity is not None
    records[0]["metrics"][0]["at_infinity"] = None
    assert {score.at_infinity for score in scores(records)} == {None}


def test_separate_says_how_many_samples_or_that_it_is_done(tmp_path: Path) -> None:
    ranking = rank(run_of(tmp_path))
    done = separate(ranking, ["worse", "good"])
    assert "already separated at n = 400" in done[1]
    assert done[1].startswith("  5 calls: +0.05 ± 0.007 (extrapolated +0.05 ± 0.007)")
    assert done[-1].startswith("Part of the difference may be bias")
    noise = separate(ranking, ["alike", "good"])
    assert all("within the noise; about " in line for line in noise[1:3])
    said = [number for line in noise[1:3] for number in re.findall(r"([\d,]+) (?:samples|or more)", line)]
    assert len(said) == 4
    assert all(len(number.replace(",", "").rstrip("0")) <= 2 for number in said)
    assert len(separate(rank(run_of(tmp_path / "2"), "energy"), ["alike", "good"])) == 3


def test_separate_says_where_a_metric_looks_at_fewer_samples(tmp_path: Path) -> None:
    store = run_of(tmp_path)
    about = store.definition()
    for samples, lines in ((N, 4), (N + 1, 4), (1000, 5)):
        (store.folder / "sweep.json").write_text(json.dumps(about | {"samples": samples}))
        assert len(found := separate(rank(store), ["alike", "good"])) == lines
    assert found[3] == "frechet_exact looks at 400 samples of a seed, however many there are: take more seeds."


BAD = {
    "--metric energie": "unknown metric 'energie': did you mean 'energy'?",
    "--nfe 7": "--nfe 7: run has the budgets 5, 8",
    "--separate good": "--separate good: give two solvers with a comma between",
    "--separate good,good": "give two solvers",
    "--separate good,alice": "unknown solver 'alice': did you mean 'alike'?",
}


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["fewstep", "rank", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    said = capsys.readouterr()
    assert (stopped.value.code, said.out, said.err.count("\n")) == (2, "", 1)
    return said.err


@pytest.mark.parametrize(("arguments", "message"), BAD.items())
def test_bad_words_are_one_line(
    arguments: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_of(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert message in refused(monkeypatch, capsys, "run", *arguments.split())


def test_folders_that_cannot_be_ranked_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = record("good", 5, 0, "lower")
    del old["metrics"][0]["parts"], old["metrics"][0]["better"], old["metrics"][0]["at_infinity"]
    folders = {
        "holds no finished cell": store_of(tmp_path / "none", []),
        "has one solver at each budget": store_of(tmp_path / "one", [record("good", 5, 0, "lower")]),
        "written by an older version": store_of(tmp_path / "old", [old, record("worse", 5, 0, "lower")]),
        "neither direction is better": run_of(tmp_path / "neither", better="neither"),
        "is not a results folder": Store(tmp_path / "nothing"),
    }
    for message, store in folders.items():
        assert message in refused(monkeypatch, capsys, str(store.folder))
    assert write_report(folders["written by an older version"]).exists()  # what needs no parts still works


def test_seeds_become_one_row_of_the_board_and_stay_rows_of_the_table(tmp_path: Path) -> None:
    records = list(run_of(tmp_path, seeds=(0, 1, 2)).records())
    table = tidy(records)
    board = over_seeds(table, records)
    assert (len(table), len(board)) == (36, 12)
    cells = table[(table["solver"] == "good") & (table["nfe"] == 5) & (table["metric"] == "frechet_exact")]
    row = board[(board["solver"] == "good") & (board["nfe"] == 5) & (board["metric"] == "frechet_exact")].iloc[0]
    assert row["value"] == pytest.approx(cells["value"].mean())
    assert row["se"] == pytest.approx(np.sqrt((cells["se"] ** 2).sum()) / 3)
    assert row["value_inf"] == pytest.approx(cells["value"].mean() - 0.1)
    assert row["score"].estimate.seeds == (0, 1, 2)


@pytest.mark.parametrize(("bad", "verdict"), [(False, "as their standard errors say"), (True, "more than their")])
def test_the_board_says_whether_seeds_agree(tmp_path: Path, bad: bool, verdict: str) -> None:
    records = [record(s, 5, seed, "lower", bad) for s in LEVELS for seed in (0, 1, 2)]
    store = store_of(tmp_path / "run", records)
    text = leaderboard(over_seeds(tidy(records), records), pd.DataFrame(), store.definition())
    assert f"Means over seeds 0, 1, 2, which differ {verdict}" in text


@pytest.mark.parametrize(
    ("better", "bold"), [("lower", {"good", "alike"}), ("higher", {"worse"}), ("neither", set())]
)  # fmt: skip
def test_bold_is_the_best_and_what_pairs_do_not_tell_from_it(tmp_path: Path, better: str, bold: set[str]) -> None:
    store = run_of(tmp_path, better=better)
    records = list(store.records())
    lines = leaderboard(over_seeds(tidy(records), records), pd.DataFrame(), store.definition()).splitlines()
    start = lines.index("## Fréchet distance to the exact moments")
    board = [line.split("|") for line in lines[start : start + 9] if line.startswith("|")][2:]
    for row in board:
        assert (row[2].strip().startswith("**"), row[3].strip().startswith("**")) == (row[1].strip() in bold,) * 2
    assert any("extrapolated to infinitely many" in line for line in lines[start : start + 12])


def test_a_seed_that_failed_leaves_the_others(tmp_path: Path) -> None:
    records = [record("good", 5, s, "lower") for s in (0, 1)] + [record("worse", 5, 1, "lower")]
    found = {s.solver: s for s in scores(records) if s.metric == "energy"}
    assert (found["good"].estimate.seeds, found["worse"].estimate.seeds) == ((0, 1), (1,))
    assert write_report(store_of(tmp_path / "run", records)).exists()
