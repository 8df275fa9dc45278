"""Two runs compared: real sweeps, real solvers of which one has a coefficient off, real commits."""

import math
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench import cli
from bench.compare import IDENTICAL, SAME, VERDICTS, Comparison, Place, compare
from bench.errors import UsageError
from bench.report.compared import summary, text_of, write_comparison
from bench.revisions import opened
from bench.runner import prepare
from bench.sealed import read_record, write_record
from bench.spec import Sweep
from bench.stats import holm

SOLVER = '''
"""DDIM, whose weight of the data is OFF times what it should be."""
from math import expm1
from solvers import solver

@solver("mine", order=1, predicts="data", grids={})
def mine(p, grid):
    x = p.start()
    for i in range(grid.steps):
        h = grid.lam[i + 1] - grid.lam[i]
        D = p.model(x, i)
        x = p.state(grid.sigma[i + 1] / grid.sigma[i] * x - OFF * grid.alpha[i + 1] * expm1(-h) * D)
'''
BASE = Sweep(
    checkpoint="gmm", solvers=("ddim", "dpmpp_2m", "mine.py:mine", "dpm_solver_12"), nfe=(5, 8), samples=200,
    latency=None, metrics=("frechet_exact", "trajectory"),
)  # fmt: skip
METRICS = ("frechet_exact", "trajectory_p95", "trajectory_rmse")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of runs: `base`, `again`, `off` with the coefficient, other `seeds` and `both`, `less` and `few`."""
    folder = tmp_path_factory.mktemp("runs")
    others: dict[str, dict[str, Any]] = {
        "seeds": {"seed": (1,)}, "both": {"seed": (0, 1)}, "few": {"samples": 150},
        "less": {"solvers": ("ddim", "mine.py:mine"), "nfe": (5, 10)},
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name in ("base", "again", "off", *others):
            (folder / f"code-{name}").mkdir()
            (folder / f"code-{name}" / "mine.py").write_text(SOLVER.replace("OFF", "1.001" if name == "off" else "1.0"))
            patch.chdir(folder / f"code-{name}")
            job = prepare(BASE.model_copy(update=others.get(name, {})), folder / name, "cpu")
            job.open()
            assert job.run("a test", lambda cell, samples: None) == []
    return folder


def of(runs: Path, a: str, b: str, **only: Any) -> Comparison:
    with opened(str(runs / a)) as of_a, opened(str(runs / b)) as of_b:
        return compare((a, b), of_a, of_b, **only)


def edited(source: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a run whose records are changed."""
    shutil.copytree(source, target)
    for path in (target / "cells").glob("*.json"):
        record = read_record(path)
        change(record)
        write_record(path, record)
    return target


def test_the_same_run_again_is_identical_to_the_last_digit(runs: Path) -> None:
    found = of(runs, "base", "again")
    assert {score.verdict for score in found.scores} == {IDENTICAL}
    assert len(found.scores) == 7 * 3
    assert {score.errors for score in found.scores} == {0}
    assert not any(score.changes for score in found.scores)
    assert (found.apart, found.only_a, found.only_b, found.runs_only_a, found.speeds) == ((), (), (), (), ())
    assert summary(found) == "21 scores of both: 21 identical"


def test_a_coefficient_that_is_off_is_found_and_nothing_else(runs: Path) -> None:
    found = of(runs, "base", "off")
    assert Counter(s.verdict for s in found.scores if s.place.series != "mine.py:mine") == {IDENTICAL: 15}
    mine = [score for score in found.scores if score.place.series == "mine.py:mine"]
    assert {score.changes for score in mine} == {("plan",)}
    assert all(score.difference.paired and score.a != score.b for score in mine)
    told = {(s.place.metric, s.place.nfe): s for s in mine if s.verdict != SAME}
    rmse = [s for s in mine if s.place.metric == "trajectory_rmse"]
    assert len(rmse) == 2
    assert all((s.place.metric, s.place.nfe) in told for s in rmse)
    assert all(abs(s.errors) > 3 for s in rmse)
    unpaired = [abs(s.b.value - s.a.value) / math.hypot(s.a.se, s.b.se) for s in rmse]
    assert max(unpaired) < 1  # which only pairs tell
    assert [s.p for s in mine] == pytest.approx(
        [p for _, p in zip(mine, holm([s.difference.p for s in mine]), strict=True)]
    )


def test_the_direction_of_a_difference_turns_with_the_sides(runs: Path) -> None:
    one, other = of(runs, "base", "off"), of(runs, "off", "base")
    turn = {"better": "worse", "worse": "better"}
    there = {score.place.metric + str(score.place.nfe) + score.place.series: score for score in other.scores}
    for score in one.scores:
        back = there[score.place.metric + str(score.place.nfe) + score.place.series]
        assert back.difference.value == -score.difference.value
        assert back.verdict == turn.get(score.verdict, score.verdict)
    assert any(score.verdict in turn for score in one.scores)


@pytest.mark.parametrize(("better", "verdict"), [("higher", "worse"), ("lower", "better"), ("neither", "changed")])
def test_what_is_worse_is_the_metrics_matter(runs: Path, tmp_path: Path, better: str, verdict: str) -> None:
    def less(record: dict[str, Any]) -> None:
        for value in record["metrics"]:
            value["value"] *= 0.5
            value["parts"] = [part * 0.9 for part in value["parts"]]

    def directed(record: dict[str, Any]) -> None:
        for value in record["metrics"]:
            value["better"] = better

    a = edited(runs / "base", tmp_path / "a", directed)
    edited(a, tmp_path / "b", less)
    found = of(tmp_path, "a", "b", metric="trajectory_rmse")
    assert {score.verdict for score in found.scores} == {verdict}


def test_other_seeds_are_compared_without_pairs_and_shared_ones_with(runs: Path) -> None:
    other = of(runs, "base", "seeds")
    assert not any(score.difference.paired for score in other.scores)
    assert {score.verdict for score in other.scores} == {SAME}
    for score in other.scores:
        assert score.difference.se == pytest.approx(math.hypot(score.a.se, score.b.se))
    shared = of(runs, "base", "both")
    assert {score.verdict for score in shared.scores} == {IDENTICAL}  # at the seed that both have
    assert {score.b.seeds for score in shared.scores} == {(0,)}
    assert "they share no noise" in text_of(other)


def test_what_is_missing_is_listed(runs: Path) -> None:
    found = of(runs, "base", "less")
    assert {(s.place.series, s.place.nfe) for s in found.scores} == {("ddim", 5), ("mine.py:mine", 5)}
    gone = {("dpmpp_2m", 5), ("dpmpp_2m", 8), ("ddim", 8), ("mine.py:mine", 8), ("dpm_solver_12", None)}
    assert {(place.series, place.nfe) for place in found.only_a} == gone
    assert set(found.only_b) == {Place("less", m, s, 10) for m in METRICS for s in ("ddim", "mine.py:mine")}
    text = text_of(found)
    assert "only in A: less: dpmpp_2m at 5 8 calls by frechet_exact, trajectory_p95, trajectory_rmse" in text
    assert "only in B: less: ddim at 10 calls" in text


def test_other_samples_are_said_and_not_compared(runs: Path) -> None:
    found = of(runs, "base", "few")
    assert {(place.metric, why) for place, why in found.apart} == {("frechet_exact", "samples: 200 / 150")}
    assert {score.place.metric for score in found.scores} == {"trajectory_p95", "trajectory_rmse"}  # of 128 in both
    assert not any(score.changes for score in found.scores)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"family": "others"}, "family: states / others"),
        ({"reference": {"data": "gmm exact", "sha256": "f" * 64}}, "/ gmm exact ffffffffffff"),
        ({"reference": {"data": "cats", "sha256": None}}, "/ cats"),
    ],
)
def test_other_families_and_references_are_said_and_not_compared(
    runs: Path, tmp_path: Path, change: dict[str, Any], why: str
) -> None:
    def swap(record: dict[str, Any]) -> None:
        record["metrics"][0] |= change

    found = of(tmp_path, *_pair(runs / "base", tmp_path, swap))
    assert len(found.apart) == 7
    assert all(said.endswith(why) for _, said in found.apart)
    assert {score.verdict for score in found.scores} == {IDENTICAL}
    assert "7 not comparable" in summary(found)
    assert why.split("/ ")[1] in text_of(found)


def _pair(base: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> tuple[str, str]:
    shutil.copytree(base, folder / "a")
    edited(base, folder / "b", change)
    return "a", "b"


def test_another_machines_trajectories_are_compared_and_its_rounding_is_no_change(runs: Path, tmp_path: Path) -> None:
    def elsewhere(record: dict[str, Any]) -> None:
        for value in record["metrics"]:
            value["value"] *= 1 + 1e-9
            if value["family"] == "trajectory":
                value["reference"]["sha256"] = "e" * 64
        record["cell"]["times"] = [t * (1 + 1e-14) for t in record["cell"]["times"]]

    found = of(tmp_path, *_pair(runs / "base", tmp_path, elsewhere))
    assert Counter(score.verdict for score in found.scores) == {SAME: 21}
    assert {(score.p, score.errors, score.changes) for score in found.scores} == {(1.0, 0.0, ())}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"cell": {"digest": "0" * 64}}, "weights"),
        ({"cell": {"options": {"lower": 1}}}, "options"),
        ({"cell": {"times": [1.0, 0.5, 0.0]}}, "times"),
        ({"counted_nfe": 9}, "NFE 8 → 9"),
        ({"key": "0" * 64}, "plan"),
    ],
)
def test_what_changed_of_the_computation_is_said(runs: Path, tmp_path: Path, change: dict[str, Any], word: str) -> None:
    def alter(record: dict[str, Any]) -> None:
        if (record["cell"]["solver"], record["cell"]["nfe"]) == ("ddim", 8):
            record["cell"] |= change.get("cell", {})
            record |= {k: v for k, v in change.items() if k != "cell"}

    found = of(tmp_path, *_pair(runs / "base", tmp_path, alter))
    said = {(score.place.series, score.place.nfe): score.changes for score in found.scores}
    assert said.pop(("ddim", 8)) == (word,)
    assert set(said.values()) == {()}
    assert "(3 of another computation)" in summary(found)


def test_a_metric_and_budgets_are_picked(runs: Path) -> None:
    found = of(runs, "base", "off", metric="frechet_exact", nfe=(8,))
    assert {(score.place.metric, score.place.nfe) for score in found.scores} == {("frechet_exact", 8)}
    assert found.only_a == found.only_b == ()


# Revisions.


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def repository(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two commits: `base`, beside another run that goes, and then the run with the coefficient off."""
    folder = tmp_path_factory.mktemp("repository")
    git(folder, "init", "-q")
    shutil.copytree(runs / "base", folder / "out" / "a run's [one]")
    shutil.copytree(runs / "less", folder / "out" / "deep" / "less")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "first")
    shutil.rmtree(folder / "out" / "a run's [one]")
    shutil.copytree(runs / "off", folder / "out" / "a run's [one]")
    shutil.copytree(runs / "few", folder / "out" / "few")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "second")
    return folder


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("HEAD~1", "HEAD"),
        ("HEAD~1", "out"),
        ("HEAD~1:out", "HEAD:out/"),
        ("HEAD~1:out/a run's [one]", "out/a run's [one]"),
    ],
)
def test_commits_are_compared_as_folders_are(
    runs: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, a: str, b: str
) -> None:
    monkeypatch.chdir(repository)
    whole = "[" not in a
    with opened(a) as of_a, opened(b) as of_b:
        assert set(of_a) == ({"a run's [one]", "deep/less"} if whole else {"a run's [one]"})
        found = compare((a, b), of_a, of_b)
    mine = [score for score in found.scores if score.place.run == "a run's [one]"]
    direct = of(runs, "base", "off").scores
    assert [(s.place.series, s.place.nfe, s.errors) for s in mine] == [
        (s.place.series, s.place.nfe, s.errors) for s in direct
    ]
    assert found.runs_only_b == (("few",) if whole else ())
    assert not any(Path(store.folder).exists() for store in of_a.values() if a.startswith("HEAD"))


def test_commits_are_read_from_a_folder_below_the_top(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository / "out" / "deep")
    with opened("HEAD:out/deep/less") as found:
        assert len(list(found["less"].records())) == 4


BAD = {
    "nowhere base": "'nowhere' is no folder, and 'nowhere' no revision of a git repository here",
    "base nowhere:out": "'nowhere' no revision",
    "base --exec=x": "No such option",
    "base code-base": "code-base is not a results folder, and holds none",
    "base off --metric frechet_exat": "did you mean 'frechet_exact'?",
    "base off --nfe 7": "--nfe 7: the budgets there are 5, 8",
    "base off --nfe x": "'x' is not a whole number",
    "base off --out code-base/mine.py": "is a file, not a folder",
    "base empty": "holds no finished cell",
}


def fewstep(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fewstep", "compare", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


@pytest.mark.parametrize(("arguments", "message"), BAD.items())
def test_bad_words_are_one_line(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    monkeypatch.chdir(runs)
    (runs / "empty").mkdir(exist_ok=True)
    shutil.copy(runs / "base" / "sweep.json", runs / "empty")
    code = fewstep(monkeypatch, *arguments.split())
    said = capsys.readouterr()
    assert (code, said.out, said.err.count("\n")) == (2, "", 1)
    assert message in said.err


@pytest.mark.parametrize("name", ["HEAD:nothing", "HEAD:code", "nope"])
def test_revisions_without_runs_are_one_line(repository: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(repository)
    with pytest.raises(UsageError) as caught, opened(name):
        pass
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_outside_a_repository_a_revision_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no revision of a git repository here"), opened("HEAD"):
        pass


def test_runs_of_which_none_is_called_alike_are_refused(runs: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(runs / "base", tmp_path / "several" / name)
    with (
        opened(str(tmp_path / "several")) as a, opened(str(runs / "off")) as b,
        pytest.raises(UsageError, match="A holds one, two; B holds off: no run is called alike"),
    ):  # fmt: skip
        compare(("A", "B"), a, b)


# What is written and printed.


def test_the_command_prints_and_writes(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(runs)
    for name in ("one", "two"):
        assert fewstep(monkeypatch, "base", "off", "--out", str(tmp_path / name)) == 0
    said = capsys.readouterr().out
    assert "mine.py:mine" in said
    assert "15 identical" in said
    names = {f"comparison.{suffix}" for suffix in ("md", "csv", "png", "svg", "pdf")}
    assert {path.name for path in (tmp_path / "one").iterdir()} == names
    for name in names:  # equal data gives equal files
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    table = pd.read_csv(tmp_path / "one" / "comparison.csv")
    found = of(runs, "base", "off")
    assert list(table["verdict"]) == [score.verdict for score in found.scores]
    assert list(table["in_standard_errors"]) == pytest.approx([score.errors for score in found.scores])
    order = [VERDICTS.index(verdict) for verdict in table["verdict"]]
    assert order == sorted(order)  # worst first
    svg = (tmp_path / "one" / "comparison.svg").read_text()
    for score in found.scores:
        if abs(score.errors) >= 2:
            assert f">{np.clip(score.errors, -99, 99):+.0f}<" in svg


def test_names_are_shown_as_they_are(runs: Path, tmp_path: Path) -> None:
    evil = "mine[red](a='<b>|$x_1$')"

    def rename(record: dict[str, Any]) -> None:
        if record["cell"]["solver"] == "ddim":
            record["cell"] |= {"solver": evil, "series": evil}

    edited(runs / "base", tmp_path / "b", rename)
    edited(tmp_path / "b", tmp_path / "c", lambda r: r["metrics"][0].update(value=r["metrics"][0]["value"] * 2))
    found = of(tmp_path, "b", "c")
    write_comparison(found, tmp_path / "out")
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "&lt;b>\\|$x_1$" in text
    assert "<b>" not in text
    assert evil in pd.read_csv(tmp_path / "out" / "comparison.csv")["series"].unique()
