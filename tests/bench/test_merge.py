"""Results of several machines in one folder: nothing lost, nothing doubled, and no two answers to one question."""

import json
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from bench.errors import UsageError
from bench.log import RunLog, read_log
from bench.merging import merge, united
from bench.report import write_report
from bench.runner import Job
from bench.sealed import CorruptError
from bench.store import Store, content
from bench.sweeps import prepare_all, run_all

GIVEN = {"checkpoint": "gmm", "samples": 60, "latency": False}
BASE = {"checkpoint": "gmm", "digest": "d", "samples": 9, "latency": None, "tuned": "a"}


def job(folder: Path, solvers: list[str], nfe: list[int], seed: list[int]) -> Job:
    [made] = prepare_all(None, GIVEN | {"solvers": solvers, "nfe": nfe, "seed": seed}, "cpu", folder, 20)
    return made


def sweep(folder: Path, *axes: Any) -> Store:
    made = job(folder, *axes)
    assert run_all((made,), "fewstep sweep", Console(quiet=True), time.perf_counter()) == []
    return made.store


def shard(folder: Path, keys: str, **other: Any) -> Store:
    """A run of made-up cells, of which those in capitals are done and have a sidecar."""
    cells = {key.lower(): ["ddim", 5] for key in keys}
    store = Store(folder)
    store.open(BASE | {"solvers": ["ddim"], "nfe": [5], "seed": [0], "cells": cells} | other)
    for key in filter(str.isupper, keys):
        store.put(key.lower(), record(key.lower()), {"x": np.arange(4.0)})
    return store


def record(key: str, value: float = 0.5, when: str = "now") -> dict[str, Any]:
    return {
        "key": key,
        "metrics": [{"name": "fid", "value": value}],
        "finished": when,
        "sampling": {"seconds": len(when)},
    }


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    """A whole sweep, and the same in three parts, of which one overlaps with another."""
    folder = tmp_path_factory.mktemp("parts")
    return {
        "whole": sweep(folder / "whole", ["ddim", "dpmpp_2m"], [3, 5], [0, 1]),
        "a": sweep(folder / "a", ["ddim"], [3, 5], [0, 1]),
        "b": sweep(folder / "b", ["dpmpp_2m"], [3, 5], [0]),
        "c": sweep(folder / "c", ["ddim", "dpmpp_2m"], [5, 3], [1]),
    }


def test_parts_are_the_whole_sweep(parts: dict[str, Store], tmp_path: Path) -> None:
    whole, *runs = (parts[name].folder for name in ("whole", "a", "b", "c"))
    found = merge(runs, tmp_path / "all")
    assert str(found) == "3 runs, 8 of 8 cells done"
    there, here = Store(whole), Store(tmp_path / "all")
    assert here.definition() == there.definition()
    assert list(map(content, here.records())) == list(map(content, there.records()))
    for key in here.definition()["cells"]:
        assert everything(here.cache)[f"{key}.npz"] == everything(there.cache)[f"{key}.npz"]
    for store in (here, there):
        write_report(store)
    for name in ("table.csv", "leaderboard.md", "leaderboard.tex", "quality.svg"):
        texts = [(store.folder / name).read_text().replace(str(store.folder), "") for store in (here, there)]
        assert _timeless(texts[0]) == _timeless(texts[1]), name
    whole_again = job(tmp_path / "all", ["ddim", "dpmpp_2m"], [3, 5], [0, 1])
    assert whole_again.pending == []
    assert whole_again.open() == []


def _timeless(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if "dc:date" not in line and "#" not in line)[:400]


def test_sidecars_need_not_be_there(parts: dict[str, Store], tmp_path: Path) -> None:
    for name in "ab":
        shutil.copytree(parts[name].folder, tmp_path / name)
    shutil.rmtree(tmp_path / "a/sidecars")
    merge([tmp_path / "a"], tmp_path / "all")
    assert len(list(Store(tmp_path / "all").records())) == 4
    assert not (tmp_path / "all/sidecars").exists()


def test_what_was_begun_and_noted_is_taken_along(tmp_path: Path) -> None:
    one, two = shard(tmp_path / "1", "Abc"), shard(tmp_path / "2", "ABc")
    block = {"about": np.zeros(4)}
    for store, key, start in ((one, "b", 0), (one, "c", 0), (two, "c", 0), (two, "c", 5)):
        store.put_block(key, (start, 5), block)
    one.put_failure("b", {"cause": "late", "when": "3"})
    two.put_failure("b", {"cause": "early", "when": "1"})
    for store, when in ((one, "2"), (two, "1")):
        store.log_run({"command": store.folder.name, "started": when})
        store.put_measurement("a", {"key": "a", "session": store.folder.name})
        RunLog(store.folder).write("sweep_started", of=store.folder.name)
    found = merge([one.folder, two.folder, one.folder / "."], tmp_path / "new/all")
    assert str(found) == (
        "2 runs, 2 of 3 cells done, 1 more begun; 1 measurements of cells that an earlier run measured left out"
    )
    here = Store(tmp_path / "new/all")
    assert [here.has(key) for key in "abc"] == [True, True, False]
    assert [here.has_block("c", (start, 5)) for start in (0, 5)] == [True, True]
    assert not here.has_block("b", (0, 5))
    assert [failure["cause"] for failure in here.failures("b")] == ["early", "late"]
    assert [run["command"] for run in here.runs()] == ["2", "1"]
    assert here.measurements()["a"]["session"] == "1"
    assert [entry["event"] for entry in read_log(here.folder)] == ["sweep_started", "sweep_started", "merged"]
    assert here.folder.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in here.folder.parent.iterdir()] == ["all"]


def test_cells_that_came_out_differently_are_refused_by_name(tmp_path: Path) -> None:
    one, two = shard(tmp_path / "1", "Ab"), shard(tmp_path / "2", "aB")
    two.put("a", record("a", 0.25, "later"), {})
    with pytest.raises(UsageError) as caught:
        merge([one.folder, two.folder], tmp_path / "all")
    names = f"{one.folder}/cells/a.json and {two.folder}/cells/a.json are of the same cell and differ: "
    assert str(caught.value) == names + "metrics.0.value is 0.5 in one and 0.25 in the other"
    assert not (tmp_path / "all").exists()


def test_when_and_how_fast_a_cell_was_made_makes_no_difference(tmp_path: Path) -> None:
    one, two = shard(tmp_path / "1", "A"), shard(tmp_path / "2", "a")
    two.put("a", record("a", when="some other day"), {})
    merge([one.folder, two.folder], tmp_path / "all")
    assert list(Store(tmp_path / "all").records()) == [record("a")]


@pytest.mark.parametrize("name", ["cells/a.json", "sidecars/a.npz", "latency/a.json", "chunks/b/0-5.npz", "sweep.json"])
def test_damaged_files_are_refused_by_name(name: str, tmp_path: Path) -> None:
    one, two = shard(tmp_path / "1", "A"), shard(tmp_path / "2", "Ab")
    two.put_block("b", (0, 5), {"about": np.zeros(4)})
    two.put_measurement("a", {"key": "a", "ms": 1234})
    path = two.folder / name
    bytes_ = bytearray(path.read_bytes())
    bytes_[len(bytes_) // 2] ^= 1
    path.write_bytes(bytes_)
    runs = [two.folder, one.folder] if name.startswith("sidecars") else [one.folder, two.folder]
    with pytest.raises(CorruptError, match=str(path)):
        merge(runs, tmp_path / "all")
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2"}


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"digest": "e"}, "different sweeps: digest is 'd' in one and 'e' in the other"),
        ({"latency": {"rounds": 5}}, "latency is None"),
        ({"extra": 1}, "extra is 'nothing'"),
        ({"seed": 3}, "seed is 3, not a list"),
        ({"seed": [1], "nfe": [7]}, "none has ddim at 5 calls with seed 1"),
    ],
    ids=str,
)
def test_runs_of_no_one_sweep_are_refused(other: dict[str, Any], words: str, tmp_path: Path) -> None:
    one, two = shard(tmp_path / "1", "A"), shard(tmp_path / "2", "A", **other)
    with pytest.raises(UsageError, match=words):
        merge([one.folder, two.folder], tmp_path / "all")
    assert not (tmp_path / "all").exists()


@settings(deadline=None, max_examples=60)
@given(
    axes=st.tuples(*[st.lists(st.sampled_from(list("abcd")), min_size=1, unique=True) for _ in range(3)]),
    axis=st.integers(0, 2),
    cuts=st.lists(st.integers(0, 4), max_size=3),
)
def test_a_sweep_cut_along_an_axis_is_put_together(axes: tuple[list[str], ...], axis: int, cuts: list[int]) -> None:
    names = ("solvers", "nfe", "seed")
    whole = BASE | dict(zip(names, axes, strict=True))

    def cells(part: dict[str, Any]) -> dict[str, list[str]]:
        return {f"{s}{n}{d}": [s, n] for s in part["solvers"] for n in part["nfe"] for d in part["seed"]}

    ends = sorted({0, len(axes[axis]), *(cut for cut in cuts if cut < len(axes[axis]))})
    pieces = [whole | {names[axis]: axes[axis][a:b]} for a, b in pairwise(ends)]
    found = united({Path(str(i)): piece | {"cells": cells(piece)} for i, piece in enumerate(pieces)})
    assert found == whole | {"cells": cells(whole)}


@pytest.mark.parametrize("there", ["full", "file"])
def test_a_place_that_is_not_free_is_left_alone(there: str, tmp_path: Path) -> None:
    one, out = shard(tmp_path / "1", "A"), tmp_path / "all"
    if there == "full":
        out.mkdir()
        (out / ".hidden").touch()
    else:
        out.touch()
    before = everything(tmp_path)
    with pytest.raises(UsageError, match="all"):
        merge([one.folder], out)
    assert everything(tmp_path) == before


def test_killed_at_any_moment_it_leaves_no_results_folder(tmp_path: Path) -> None:
    one = shard(tmp_path / "1", "ABCDEFGH")
    code = (
        "import os, sys, shutil; from pathlib import Path; from bench import merging\n"
        "left = int(sys.argv[3]); copy = shutil.copyfile\n"
        "def counted(*args):\n"
        "    global left; left -= 1\n"
        "    return copy(*args) if left else os.kill(os.getpid(), 9)\n"
        "shutil.copyfile = counted; merging.merge([Path(sys.argv[1])], Path(sys.argv[2]))"
    )
    killed = subprocess.run([sys.executable, "-c", code, one.folder, tmp_path / "all", "9"])
    assert killed.returncode == -9
    assert not (tmp_path / "all").exists()
    assert not [path for path in tmp_path.rglob("sweep.json") if path.parent != one.folder]
    merge([one.folder], tmp_path / "all")
    assert json.loads((tmp_path / "all/sweep.json").read_text())["cells"].keys() == set("abcdefgh")
