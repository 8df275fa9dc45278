"""Space given back: only what nothing needs, and never under somebody who works there."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rich.console import Console

from bench.cleaning import clean
from bench.errors import UsageError
from bench.executors import How
from bench.keeping import Keep, held, is_moment, kept
from bench.report import write_report
from bench.runner import Job
from bench.sealed import read_arrays, size_of, write_arrays
from bench.store import Store, content
from bench.sweeps import prepare_all, run_all
from solvers import UnknownNameError
from tests.bench.test_merge import everything, shard

GIVEN = {"checkpoint": "digits", "samples": 300, "solvers": ["ddim"], "nfe": [2, 3], "latency": False}
HOLDER = """
import sys, time
from pathlib import Path
from bench.claims import Claims
claims = Claims(Path(sys.argv[1]) / ".claims")
claims.take("a cell")
print("held", flush=True)
time.sleep(60)
"""


def prepared(folder: Path, keep: Keep = "features") -> Job:
    [job] = prepare_all(None, GIVEN, "cpu", folder, 100, How(keep=keep))
    return job


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    """The same sweep, with more and less kept."""
    folder = tmp_path_factory.mktemp("runs")
    jobs = {keep: prepared(folder / keep, keep) for keep in ("features", "float16", "moments", "nothing")}
    for job in jobs.values():
        assert run_all((job,), "fewstep sweep", Console(quiet=True), time.perf_counter()) == []
    return {name: job.store for name, job in jobs.items()}


def size(folder: Path) -> int:
    return sum(len(text) for text in everything(folder).values())


def freed(lines: list[str]) -> int:
    return int(lines[0].rpartition("free")[2].split()[-2].replace(",", ""))


def test_no_number_depends_on_what_is_kept_and_less_is_less(runs: dict[str, Store]) -> None:
    records = [[content(record) for record in store.records()] for store in runs.values()]
    assert records[0] == records[1] == records[2] == records[3]
    sizes = [sum(path.stat().st_size for path in store.cache.glob("[0-9a-f]*.npz")) for store in runs.values()]
    assert sizes[0] > max(sizes[1:3]) > min(sizes[1:3]) > sizes[3]
    pictures = {(store.folder / "samples-ddim.png").read_bytes() for store in runs.values()}
    assert len(pictures) == 1


@pytest.mark.parametrize("keep", ["float16", "moments", "nothing"])
def test_shrinking_later_is_keeping_less_at_once(keep: Keep, runs: dict[str, Store], tmp_path: Path) -> None:
    store = _copy(runs["features"], tmp_path)
    before, records = size(store.folder), everything(store.folder / "cells")
    announced = clean(store, keep, dry=True)
    assert size(store.folder) == before
    lines = clean(store, keep)
    assert [line.replace("would free", "freed") for line in announced] == lines
    assert before - size(store.folder) == freed(lines) > 0
    assert everything(store.folder / "cells") == records
    for path in store.cache.glob("*.npz"):
        assert path.read_bytes() == (runs[keep].cache / path.name).read_bytes()
    write_report(store)
    assert (store.folder / "samples-ddim.png").read_bytes() == (
        runs["features"].folder / "samples-ddim.png"
    ).read_bytes()
    again = prepared(store.folder)
    assert again.open() == []
    assert again.pending == []
    assert freed(clean(store, keep)) == 0


def test_what_is_gone_is_not_promised_back(runs: dict[str, Store], tmp_path: Path) -> None:
    lines = clean(_copy(runs["moments"], tmp_path), "float16")
    assert freed(lines) >= 0
    assert "2 sidecars hold less than float16 already, and only sampling anew brings back what is gone" in lines[-1]


def _copy(store: Store, folder: Path) -> Store:
    for name, text in everything(store.folder).items():
        if not name.startswith("sidecars/trajectory"):
            (folder / "run" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "run" / name).write_bytes(text)
    return Store(folder / "run")


def test_what_nothing_needs_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    store = shard(tmp_path / "run", "Ab")
    needless = {
        "cells/.a.json.x8_yz0ab": 10, "sidecars/.a.npz.abcdefgh": 20, "chunks/a/0-5.npz": 300, "aside/cells-a.json": 7,
        "slurm/12_0_log.err": 5, ".table.csv.01234567": 2,
    }  # fmt: skip
    needed = {"chunks/b/0-5.npz": 9, "sidecars/trajectory-1.npz": 8, "notes/.my.settings": 3, "table.csv": 4}
    for name, count in (needless | needed).items():
        (store.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (store.folder / name).write_bytes(b"x" * count)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").touch()
    (store.folder / "aside/link").symlink_to(outside / "mine")
    store.put_session({"cells": ["a"], "faults": {}})
    before = everything(store.folder)
    assert freed(clean(store, dry=True)) == freed(clean(store)) == sum(needless.values()) + len(str(outside / "mine"))
    gone = before.keys() - everything(store.folder).keys()
    assert gone == {*needless, "aside/link"}
    assert (outside / "mine").exists()
    assert not (store.folder / "chunks/a").exists()
    store.put_measurement("a", {"key": "a"})
    store.put("b", {"key": "b"}, {})
    lines = clean(store)
    assert [line.split(": ")[1] for line in lines[1:]] == [
        "blocks of finished cells, 1 files",
        "a measuring session that is over, 1 files",
        "solutions for cells to come, of which there are none, 1 files",
    ]
    assert everything(store.folder).keys() >= {"sweep.json", "cells/a.json", "cells/b.json", "sidecars/a.npz"}


def test_a_folder_that_leads_elsewhere_is_not_followed(tmp_path: Path) -> None:
    store, outside = shard(tmp_path / "run", "A"), tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").touch()
    for name in ("aside", "slurm", "chunks"):
        (store.folder / name).symlink_to(outside)
    clean(store)
    assert (outside / "mine").exists()


def test_nothing_is_deleted_under_somebody_who_works_there(tmp_path: Path) -> None:
    store = shard(tmp_path / "run", "A")
    store.put_block("a", (0, 5), {})
    before = everything(store.folder)
    with subprocess.Popen([sys.executable, "-c", HOLDER, store.folder], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UsageError, match="another process works on it"):
            clean(store, "nothing")
        assert everything(store.folder) == before
        holder.kill()
    clean(store, "nothing")
    assert not store.has_block("a", (0, 5))


def test_bad_input_is_refused(tmp_path: Path) -> None:
    store = shard(tmp_path / "run", "A")
    before = everything(store.folder)
    with pytest.raises(UnknownNameError, match="did you mean 'float16'"):
        clean(store, "float6")
    with pytest.raises(UsageError, match="is not a results folder"):
        clean(Store(tmp_path / "other"))
    assert everything(store.folder) == before


def test_a_damaged_sidecar_is_left_to_the_next_sweep(tmp_path: Path) -> None:
    store = shard(tmp_path / "run", "AB")
    (store.cache / "a.npz").write_bytes(b"torn")
    lines = clean(store, "nothing")
    assert "1 sidecars are damaged" in lines[-1]
    assert (store.cache / "a.npz").read_bytes() == b"torn"
    assert read_arrays(store.cache / "b.npz") == {}


LAYERS = st.dictionaries(
    st.sampled_from(["images", "inception", "clip.last"]),
    st.integers(1, 6).flatmap(lambda d: arrays(np.float32, (12, d), elements=st.floats(-1e6, 1e6, width=32))),
)


@settings(deadline=None)
@given(layers=LAYERS, way=st.lists(st.sampled_from(["features", "float16", "moments", "nothing"]), max_size=3))
def test_keeping_less_step_by_step_never_grows_nor_forgets_images(layers: dict, way: list[Keep]) -> None:
    now = layers
    for keep in way:
        less = kept(now, keep)
        assert sum(a.nbytes for a in less.values()) <= sum(a.nbytes for a in now.values())
        assert kept(less, keep).keys() == less.keys()
        now = less
    assert ("images" in now) == ("images" in layers)
    if "nothing" in way:
        assert held(now) == "nothing"


def test_moments_are_of_the_features(tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32)
    found = kept({"x": features, "wide": features.T}, "moments")
    assert {name for name in found if is_moment(name)} == {"x.n", "x.mean", "x.covariance"}
    assert found["wide"] is not None  # as its moments would be larger
    np.testing.assert_allclose(found["x.covariance"], np.cov(features.T.astype(float)), rtol=1e-12)
    np.testing.assert_allclose(found["x.mean"], features.mean(0, dtype=float), rtol=1e-12)


def test_sizes_are_those_of_files(tmp_path: Path) -> None:
    made = {"x": np.ones((3, 5)), "images": np.zeros(7, np.uint8)}
    write_arrays(tmp_path / "a.npz", made)
    assert size_of(made) == (tmp_path / "a.npz").stat().st_size
