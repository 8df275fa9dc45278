"""The log of a run: whole lines from several processes, and nothing that a disk or a bit can do to a sweep."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.log import NAME, RunLog, read_log, read_on

WRITER = """
import sys
from pathlib import Path
from bench.log import RunLog
log = RunLog(Path(sys.argv[1]))
for i in range(300):
    log.write("block_done", key="k" * int(sys.argv[2]), start=i)
"""
SMALL_DISK = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))" + WRITER
in_one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)


def writer(code: str, folder: Path, size: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code, folder, str(size)], stderr=subprocess.PIPE)


def test_an_event_says_when_what_and_who(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.write("cell_failed", key="a", label="ddim nfe=5", cause="no\nmemory \x1b[31m €")
    log.write("sweep_ended", out=tmp_path, seconds=2.5)
    first, last = read_log(tmp_path)
    assert first["event"] == "cell_failed"
    assert first["cause"] == "no\nmemory \x1b[31m €"
    assert last["out"] == str(tmp_path)
    assert first["run"] == last["run"] == log.run
    assert 0 <= first["elapsed"] <= last["elapsed"] < 5
    assert len(first["time"]) == len("2026-11-21T22:50:45.391+00:00")
    assert (tmp_path / NAME).read_bytes().count(b"\n") == 2


def test_processes_that_write_at_once_leave_whole_lines(tmp_path: Path) -> None:
    sizes = (1, 70, 3000)
    processes = [writer(WRITER, tmp_path, size) for size in sizes]
    assert [process.wait() for process in processes] == [0, 0, 0]
    lines = (tmp_path / NAME).read_text().splitlines()
    assert [json.loads(line) for line in lines] == read_log(tmp_path)
    for size in sizes:
        assert [e["start"] for e in read_log(tmp_path) if len(e["key"]) == size] == list(range(300))
    assert len({entry["run"] for entry in read_log(tmp_path)}) == 3


def test_a_disk_that_is_full_costs_the_sweep_nothing_and_the_log_one_line(tmp_path: Path) -> None:
    full = writer(SMALL_DISK, tmp_path, 10)
    assert full.wait() == 0
    assert full.stderr.read() == b""
    assert (tmp_path / NAME).stat().st_size == 5000  # the last line was cut
    before = read_log(tmp_path)
    assert 0 < len(before) < 300
    RunLog(tmp_path).write("there is room again")
    assert [entry["event"] for entry in read_log(tmp_path)[len(before) :]] == ["there is room again"]


@pytest.mark.parametrize("place", ["missing", "afile"])
def test_where_nothing_can_be_written_nothing_is_raised(place: str, tmp_path: Path) -> None:
    (tmp_path / "afile").touch()
    RunLog(tmp_path / place).write("sweep_started")
    assert read_log(tmp_path / place) == []


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("mine\n")
    (tmp_path / NAME).symlink_to(tmp_path / "outside")
    RunLog(tmp_path).write("sweep_started")
    assert (tmp_path / "outside").read_text() == "mine\n"


def test_a_copy_is_of_the_same_run_with_a_clock_of_its_own(tmp_path: Path) -> None:
    log = RunLog(tmp_path, began=-1e6)  # as on a machine that was started long ago
    copy = pickle.loads(pickle.dumps(log))
    copy.write("block_done")
    [entry] = read_log(tmp_path)
    assert entry["run"] == log.run
    assert 0 <= entry["elapsed"] < 5


@in_one_folder
@given(cuts=st.lists(st.integers(0, 10**6), max_size=6))
def test_a_log_that_grows_is_read_once_whatever_the_pieces(cuts: list[int], tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    (tmp_path / NAME).unlink(missing_ok=True)
    for i in range(20):
        log.write("block_done", start=i)
    text = (tmp_path / NAME).read_bytes()
    seen, start = [], 0
    for end in [*sorted(cut % len(text) for cut in cuts), len(text)]:
        (tmp_path / NAME).write_bytes(text[:end])
        new, start = read_on(tmp_path, start)
        seen += new
    assert [entry["start"] for entry in seen] == list(range(20))


def test_another_log_in_its_place_is_read_from_its_start(tmp_path: Path) -> None:
    for i in range(3):
        RunLog(tmp_path).write("old", i=i)
    _, start = read_on(tmp_path, 0)
    (tmp_path / NAME).unlink()
    RunLog(tmp_path).write("new")
    assert [entry["event"] for entry in read_on(tmp_path, start)[0]] == ["new"]


@in_one_folder
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_costs_at_most_the_lines_it_joins(place: int, bit: int, tmp_path: Path) -> None:
    (tmp_path / NAME).unlink(missing_ok=True)
    for i in range(5):
        RunLog(tmp_path).write("block_done", i=i)
    text = bytearray((tmp_path / NAME).read_bytes())
    text[place % len(text)] ^= 1 << bit
    (tmp_path / NAME).write_bytes(text)
    assert len(read_log(tmp_path)) >= 3


@pytest.mark.parametrize("line", [b"[" * 10**5, b"7", b"\xff", b'{"event": 1, "run": "a", "time": "2026"}', b"{}", b""])
def test_what_is_no_event_is_left_out(line: bytes, tmp_path: Path) -> None:
    RunLog(tmp_path).write("one")
    with (tmp_path / NAME).open("ab") as file:
        file.write(line + b"\n")
    RunLog(tmp_path).write("two")
    assert [entry["event"] for entry in read_log(tmp_path)] == ["one", "two"]
