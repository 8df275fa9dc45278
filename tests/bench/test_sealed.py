"""Files that tell when they were damaged: any change is found, and the same contents give the same bytes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.sealed import CorruptError, read_arrays, read_record, write_arrays, write_record

RECORD = {"key": "k", "value": 0.1 + 0.2, "nested": {"b": [1, 2.5, None], "a": "ü"}, "tuple": (1, 2)}
X = np.arange(60.0).reshape(3, 20)
ARRAYS = {"x": X, "empty": np.zeros((0, 4)), "n": np.array(3), "images": np.eye(4, dtype="u1")}
SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_a_record_comes_back_in_its_order_and_type(tmp_path: Path) -> None:
    write_record(tmp_path / "r", RECORD)
    found = read_record(tmp_path / "r")
    assert found == RECORD | {"tuple": [1, 2]}
    assert list(found) == list(RECORD)
    assert len((tmp_path / "r").read_text().splitlines()) == 1
    write_record(tmp_path / "r", RECORD, indent=1)
    assert read_record(tmp_path / "r") == found


def test_the_same_arrays_are_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write_arrays(tmp_path / name, ARRAYS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    found = read_arrays(tmp_path / "a")
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def _harmed(data: bytes, place: float, bit: int, cut: bool) -> bytes:
    at = min(int(place * len(data)), len(data) - 1)
    return data[:at] if cut else data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def _read(read: Callable[[Path], dict[str, Any]], path: Path) -> dict[str, Any] | CorruptError:
    try:
        return read(path)
    except CorruptError as error:
        return error


@SETTINGS
@given(place=st.floats(0, 1), bit=st.integers(0, 7), cut=st.booleans())
def test_harm_to_a_record_is_found_or_does_none(tmp_path: Path, place: float, bit: int, cut: bool) -> None:
    path = tmp_path / "r"
    write_record(path, RECORD)
    whole = read_record(path)
    path.write_bytes(_harmed(path.read_bytes(), place, bit, cut))
    found = _read(read_record, path)
    if isinstance(found, CorruptError):
        assert str(path) in str(found)
        assert "\n" not in str(found)
    else:  # the flip hit white space, or the seal's own name, of which there is one
        assert {k: v for k, v in found.items() if k in whole} == whole


@SETTINGS
@given(place=st.floats(0, 1), bit=st.integers(0, 7), cut=st.booleans())
def test_harm_to_arrays_is_found_or_does_none(tmp_path: Path, place: float, bit: int, cut: bool) -> None:
    path = tmp_path / "a"
    write_arrays(path, ARRAYS)
    path.write_bytes(_harmed(path.read_bytes(), place, bit, cut))
    found = _read(read_arrays, path)
    if isinstance(found, CorruptError):
        assert str(path) in str(found)
    else:  # the flip hit what a zip archive says beside its files' contents
        for name in ARRAYS.keys() & found.keys():
            np.testing.assert_array_equal(found[name], ARRAYS[name])
        assert found.keys() == ARRAYS.keys()


@pytest.mark.parametrize("change", [lambda r: r | {"value": 0.3}, lambda r: {k: v for k, v in r.items() if k != "key"}])
def test_an_edited_number_breaks_the_seal(tmp_path: Path, change: Any) -> None:
    path = tmp_path / "r"
    write_record(path, RECORD)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(CorruptError, match="its digest is another"):
        read_record(path)


@pytest.mark.parametrize("change", [{"x": X * (1 + 1e-15)}, {"x": X.reshape(20, 3)}, {"n": np.array(3.0)}])
def test_other_arrays_under_an_old_seal_are_found(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "a.npz"
    write_arrays(path, ARRAYS)
    with np.load(path) as found:
        np.savez(path, **{**dict(found), **change})
    with pytest.raises(CorruptError, match="its digest is another"):
        read_arrays(path)


def test_files_from_before_seals_are_taken_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "r").write_text(json.dumps(RECORD))
    np.savez(tmp_path / "a.npz", **ARRAYS)
    assert read_record(tmp_path / "r")["key"] == "k"
    assert read_arrays(tmp_path / "a.npz").keys() == ARRAYS.keys()
