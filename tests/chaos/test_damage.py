"""Files that were cut short, or had a bit flipped: seen by their digest, set aside, and made again as they were."""

import json
import random
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.metrics.trajectory import TrajectoryError
from bench.sealed import CorruptError, read_arrays, read_record, write_arrays, write_record
from bench.store import Store
from tests.chaos.asked import changes, seen
from tests.chaos.nest import Nest
from tests.chaos.stories import Story, asked, same, story

Harm = Callable[[bytes, random.Random], bytes]
RECORD = {"key": "ab" * 32, "metrics": [{"value": 1.25e-05, "se": 0.5, "name": "ünïcode"}], "n": 64, "none": None}
ARRAYS = {"states": np.arange(24.0).reshape(4, 6), "images": np.arange(8, dtype=np.uint8), "about": np.array(3)}


def cut(data: bytes, at: random.Random) -> bytes:
    return data[: at.randrange(len(data))]


def flipped(data: bytes, at: random.Random) -> bytes:
    """One bit of it."""
    bit = at.randrange(8 * len(data))
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


@given(st.randoms(use_true_random=False), st.sampled_from([cut, flipped]))
def test_a_record_is_what_was_written_or_refused(
    tmp_path_factory: pytest.TempPathFactory, at: random.Random, harm: Harm
) -> None:
    path = tmp_path_factory.mktemp("sealed") / "record.json"
    write_record(path, RECORD)
    path.write_bytes(harm(path.read_bytes(), at))
    with suppress(CorruptError):
        assert read_record(path) == RECORD  # 1E-05 is 1e-05


@pytest.mark.parametrize("bit", range(8 * 8))
def test_damage_to_the_name_of_a_seal_is_seen_too(tmp_path: Path, bit: int) -> None:
    path = tmp_path / "record.json"
    write_record(path, RECORD)
    data = bytearray(path.read_bytes())
    assert data[:8] == b'{"seal":'
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    with pytest.raises(CorruptError):
        read_record(path)


@given(st.randoms(use_true_random=False), st.sampled_from([cut, flipped]))
def test_arrays_are_what_was_written_or_refused(
    tmp_path_factory: pytest.TempPathFactory, at: random.Random, harm: Harm
) -> None:
    path = tmp_path_factory.mktemp("sealed") / "arrays.npz"
    write_arrays(path, ARRAYS)
    path.write_bytes(harm(path.read_bytes(), at))
    with suppress(CorruptError):
        found = read_arrays(path)  # after a flip in what nobody reads, such as a date
        assert found.keys() == ARRAYS.keys()
        assert all(np.array_equal(found[name], ARRAYS[name]) for name in ARRAYS)


@pytest.fixture(scope="module")
def measured(forks: Nest, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """A finished run with measurements; not to be changed."""
    made = story(forks, tmp_path_factory.mktemp("damage") / "measured", measured=True)
    done = made.sweep("--metrics", "frechet_exact,trajectory")
    assert done.code == 0, done.said()
    return made


def _copy(of: Story, folder: Path) -> Story:
    shutil.copytree(of.folder, folder)
    return Story(of.nest, folder, folder / "run", of.options)


def _harm(path: Path, harm: Harm, at: random.Random) -> None:
    """In a way that its reader must see: in the middle of it, where contents are."""
    data = path.read_bytes()
    middle = len(data) // 4
    path.write_bytes(data[:middle] + harm(data[middle:-middle], at) + (b"" if harm is cut else data[-middle:]))


@pytest.mark.parametrize("harm", [cut, flipped])
@pytest.mark.parametrize("kind", ["cells", "latency", "sidecars", "sweep.json"])
def test_what_is_damaged_is_set_aside_and_made_again(
    measured: Story, tmp_path: Path, kind: str, harm: Harm, long: bool
) -> None:
    for number in range(20 if long else 1):
        told = _copy(measured, tmp_path / f"told-{number}")
        path = _first(told, kind)
        _harm(path, harm, random.Random(f"{kind}{number}"))
        before = seen(told.run_folder)
        _readers_refuse_in_a_line(told, refused=kind != "sidecars")
        assert changes(before, seen(told.run_folder)) == ()
        mended = told.sweep("--metrics", "frechet_exact,trajectory")
        assert mended.code == 0, mended.said()
        assert f"set aside: {path.relative_to(told.folder)} is damaged" in mended.said()
        aside = {other.name.removesuffix(".0") for other in (told.run_folder / "aside").iterdir()}
        name = "-".join(path.relative_to(told.run_folder).parts)
        assert aside == ({name, f"cells-{path.stem}.json"} if kind == "sidecars" else
                         {name, f"sidecars-{path.stem}.npz"} if kind == "cells" else {name})  # fmt: skip
        assert same(told, measured)
        assert len(list((told.run_folder / "latency").iterdir())) == 4


def _first(told: Story, kind: str) -> Path:
    """A file of a kind."""
    path = told.run_folder / kind
    cells = {cell.stem for cell in (told.run_folder / "cells").iterdir()}
    return path if path.is_file() else min(file for file in path.iterdir() if file.stem in cells)


def _readers_refuse_in_a_line(told: Story, refused: bool) -> None:
    for arguments in (["rank", "run", "--nfe", "4"], ["status", "run"], ["compare", "run", "run"]):
        asked_of = told.ask(*arguments)
        assert "Traceback" not in asked_of.said(), asked_of.said()
        if refused and asked_of.code != 0:
            assert asked_of.code == 2
            assert asked_of.said().startswith("fewstep: ")
            assert "run its sweep again" in asked_of.said()
    if refused:
        assert told.ask("report", "run").code == 2


@pytest.mark.parametrize("harm", [cut, flipped])
def test_a_reference_solution_that_is_damaged_is_made_again(measured: Story, tmp_path: Path, harm: Harm) -> None:
    told = _copy(measured, tmp_path / "told")
    (solution,) = (told.run_folder / "sidecars").glob("trajectory-*")
    good = read_arrays(solution)["exact"]
    _harm(solution, harm, random.Random(3))
    with pytest.raises(CorruptError):
        read_arrays(solution)
    for cell in [*(told.run_folder / "cells").iterdir()][:1]:
        cell.unlink()
    assert told.sweep("--metrics", "frechet_exact,trajectory").code == 0
    np.testing.assert_array_equal(read_arrays(solution)["exact"], good)
    assert same(told, measured)
    assert TrajectoryError.name in told.numbers()["metric"].iloc[-1]


@pytest.mark.parametrize("harm", [cut, flipped])
def test_a_block_that_is_damaged_is_set_aside_and_alone_made_again(
    forks: Nest, whole: Story, tmp_path: Path, harm: Harm
) -> None:
    told = story(forks, tmp_path / "told")
    process = told.start()
    blocks = told.run_folder / "chunks"
    told.until(lambda: len(list(blocks.glob("*/*.npz"))) == 2)
    process.send(signal.SIGKILL)
    _harm(min(blocks.glob("*/0-*.npz")), harm, random.Random(1))
    assert told.sweep().code == 0
    assert same(told, whole)
    [aside] = (told.run_folder / "aside").iterdir()
    assert aside.name.endswith("0-32.npz.0")
    again = asked(told.calls()) - asked(whole.calls())
    assert sum(again.values()) <= 2 * 32 * 6


@pytest.mark.parametrize("harm", [cut, flipped])
def test_notes_that_are_damaged_keep_nobody_from_numbers(
    measured: Story, tmp_path: Path, harm: Harm, long: bool
) -> None:
    """Each kind alone, for who asks; then all of them for the sweep that goes on."""
    told = _copy(measured, tmp_path / "told")
    key, entry = _first(told, "cells").stem, {"cell": {"solver": "ddim", "nfe": 4}, "cause": "x", "traceback": "y"}
    Store(told.run_folder).put_failure(key, entry)
    (told.run_folder / "cells" / f"{key}.json").unlink()
    notes = [told.run_folder / name for name in ("runs.json", "log.jsonl", f"attempts/{key}.json")]
    for path in notes:
        good = path.read_bytes()
        for number in range(40 if long else 4):
            path.write_bytes(harm(good, random.Random(number)))
            status = told.ask("status", "run")
            assert status.code == 0, (path.read_bytes(), status.said())
            assert "3 cells done, 1 failed, 1 left" in status.said()
            assert Store(told.run_folder).failures(key) in ([], [entry])
        path.write_bytes(good)
    for path in notes:
        path.write_bytes(harm(path.read_bytes(), random.Random(3)))
    mended = told.sweep("--metrics", "frechet_exact,trajectory")
    assert mended.code == 0, mended.said()
    assert same(told, measured)


def test_a_measuring_session_that_is_damaged_begins_anew(forks: Nest, tmp_path: Path) -> None:
    told = story(forks, tmp_path / "told", measured=True)
    process, session = told.start(), told.run_folder / "session.json"
    told.until(session.exists)
    process.send(signal.SIGTERM)
    assert process.done() == 143
    _harm(session, flipped, random.Random(5))
    mended = told.sweep()
    assert mended.code == 0, mended.said()
    assert "set aside: run/session.json is damaged" in mended.said()
    found = [json.loads(path.read_text()) for path in (told.run_folder / "latency").iterdir()]
    assert [len(measurement["session"]["started"]) for measurement in found] == [1] * 4
