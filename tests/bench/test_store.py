"""The store: records whole or absent, whatever happens, and no folder taken over by mistake."""

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.errors import UsageError
from bench.files import write_atomically, write_json
from bench.store import Store

DEFINITION = {"checkpoint": "gmm", "digest": "0", "cells": {}, "nfe": [5, 10], "seed": 0}
WRITER = """
import sys, itertools, numpy as np
from pathlib import Path
from bench.store import Store
store = Store(Path(sys.argv[1]))
for n in itertools.count():
    store.put(str(n), {"key": str(n), "filling": "x" * 1_000_000}, {"x": np.full(100_000, n)})
    print(n, flush=True)
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "run")
    store.open(DEFINITION)
    return store


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_what_is_put_is_there(store: Store) -> None:
    record = {"key": "k1", "metrics": [{"value": 0.1 + 0.2}]}
    assert not store.has("k1")
    store.put("k1", record, {"x": np.arange(6.0).reshape(2, 3)})
    store.put("k0", {"key": "k0"}, {})
    assert store.has("k1")
    assert list(store.records()) == [{"key": "k0"}, record]
    np.testing.assert_array_equal(store.sidecar("k1")["x"], [[0, 1, 2], [3, 4, 5]])


def test_a_missing_sidecar_is_empty(store: Store) -> None:
    assert store.sidecar("nothing") == {}


def test_killing_a_writer_leaves_only_whole_records(tmp_path: Path) -> None:
    chance, store = random.Random(0), Store(tmp_path / "run")
    for _ in range(10):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(store.folder)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(chance.uniform(0, 0.1))
        writer.kill()
        writer.communicate()
        records = list(store.records())
        assert records
        for record in records:
            assert len(record["filling"]) == 1_000_000
            assert (store.sidecar(record["key"])["x"] == int(record["key"])).all()
        shutil.rmtree(store.folder)


def test_a_record_never_stands_without_its_sidecar(store: Store) -> None:
    with pytest.raises(TypeError):
        store.put("k", {"key": "k"}, {"file": np.ones(3)})  # savez has a parameter of that name
    assert not store.has("k")


def test_a_failing_write_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(file: Any) -> None:
        file.write(b"new")
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_atomically(path, fail)
    assert (path.read_bytes(), files(tmp_path)) == (b"old", ["file"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_json_lacks_is_refused(store: Store, value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        store.put("k", {"key": "k", "metrics": [{"value": value}]}, {})
    assert not store.has("k")
    assert list(store.records()) == []


def test_failures_add_up_and_are_no_records(store: Store) -> None:
    assert store.failures("k") == []
    store.put_failure("k", {"cause": "first"})
    store.put_failure("k", {"cause": "second"})
    assert store.failures("k") == [{"cause": "first"}, {"cause": "second"}]
    assert not store.has("k")
    assert list(store.records()) == []


def test_runs_are_noted_in_order(store: Store) -> None:
    store.log_run({"command": "one"})
    store.log_run({"command": "two"})
    assert store.runs() == [{"command": "one"}, {"command": "two"}]
    assert [run["command"] for run in json.loads((store.folder / "runs.json").read_text())] == ["one", "two"]


def test_check_writes_nothing(tmp_path: Path) -> None:
    Store(tmp_path).check(DEFINITION)
    Store(tmp_path / "new" / "folder").check(DEFINITION)
    assert files(tmp_path) == []


def test_the_same_definition_may_go_on(store: Store) -> None:
    before = files(store.folder)
    store.check(DEFINITION)
    store.open(DEFINITION)
    assert (store.definition(), files(store.folder)) == (DEFINITION, before)


@pytest.mark.parametrize(
    ("other", "key"),
    [({"seed": 1}, "seed"), ({"nfe": [5]}, "nfe"), ({"guidance": 2.0}, "guidance")],
)
def test_another_definition_is_refused_by_the_key_that_differs(store: Store, other: dict[str, Any], key: str) -> None:
    with pytest.raises(UsageError, match=f"its {key} is"):
        store.check(DEFINITION | other)


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match=r"other files and no sweep\.json"):
        Store(tmp_path).check(DEFINITION)
    assert files(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize("below", [".", "run", "run/deeper"])
def test_a_file_in_the_way_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file, not a folder"):
        Store(tmp_path / "file" / below).check(DEFINITION)


@pytest.mark.parametrize("text", ["", "{", "[1, 2", "[1]"])
def test_a_folder_without_a_readable_definition_is_no_results_folder(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="not a results folder"):
        Store(tmp_path).definition()
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(UsageError, match=r"sweep\.json is damaged"):
        Store(tmp_path).definition()
    assert len(Store(tmp_path).open(DEFINITION)) == 1  # no cell is there that could be another sweep's
    assert Store(tmp_path).definition() == DEFINITION


def test_a_definition_without_a_sweep_is_no_results_folder(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(UsageError, match="not a results folder"):
        Store(tmp_path).check(DEFINITION)


def test_json_is_written_whole_and_readable_by_others(tmp_path: Path) -> None:
    write_json(tmp_path / "deep" / "x.json", {"a": 1})
    assert json.loads((tmp_path / "deep" / "x.json").read_text()) == {"a": 1}
    assert (tmp_path / "deep" / "x.json").stat().st_mode & 0o777 == 0o644
