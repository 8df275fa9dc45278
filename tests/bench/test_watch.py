"""Watching a run from another process: what is shown is what is in its files, and no name does anything to a screen."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.log import NAME, RunLog
from bench.store import Store
from bench.watched import Follower, State
from tests.bench.running import BLOCK, CELLS, DEFINITION, FAILS, SAMPLES

WATCH = """
import sys
from pathlib import Path
from rich.console import Console
from bench.store import stores
from bench.watch import watch
watch(stores(Path(sys.argv[1])), float(sys.argv[2]), Console(), patience=0.5)
"""
KEYS = list(CELLS)
CALLS = {key: nfe or 7.5 for key, (_, nfe) in CELLS.items()}


def start(folder: Path, *arguments: object) -> subprocess.Popen[bytes]:
    """A sweep's process, whose folder is there; `go` makes it begin."""
    command = [sys.executable, "-m", "tests.bench.running", folder, *map(str, arguments)]
    running = subprocess.Popen(command, stdin=subprocess.PIPE)
    while not (folder / NAME).exists():
        time.sleep(0.01)
        assert running.poll() is None
    return running


def go(running: subprocess.Popen[bytes]) -> None:
    running.stdin.write(b"\n")
    running.stdin.close()


def watching(folder: Path, **options: object) -> subprocess.Popen[str]:
    environment = os.environ | {"FORCE_COLOR": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", WATCH, str(folder), "0.05"]
    return subprocess.Popen(  # Ctrl-C must be heard, though whoever runs the tests may ignore it
        command, env=environment, text=True, stderr=subprocess.PIPE, preexec_fn=_hears, **options
    )


def _hears() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def state(folder: Path) -> State:
    return Follower(Store(folder)).state()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder that a sweep has opened."""
    Store(tmp_path / "run").open(DEFINITION)
    return tmp_path / "run"


def event(folder: Path, seconds: float, name: str, process: str = "elsewhere:1", **fields: object) -> None:
    """An event of a run on another machine, at so many seconds after its start."""
    when = datetime(2026, 11, 21, tzinfo=UTC) + timedelta(seconds=seconds)
    entry = {"time": when.isoformat(), "elapsed": seconds, "event": name, "run": "a", "process": process} | fields
    with (folder / NAME).open("a") as file:
        file.write(json.dumps(entry) + "\n")


def test_in_a_pipe_it_says_whole_lines_without_control_codes_until_the_sweep_is_done(tmp_path: Path) -> None:
    running = start(tmp_path / "run", 0.08)
    watcher = watching(tmp_path, stdout=subprocess.PIPE)
    first = watcher.stdout.readline()
    go(running)
    out, err = watcher.communicate(timeout=60)
    out = first + out
    assert watcher.returncode == 0, err
    assert running.wait() == 0, "the watch ended before the sweep did"
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", out)
    lines = out.splitlines()
    assert all(line.startswith(str(tmp_path / "run") + ": ") for line in lines)
    done = [int(found[1]) for line in lines if (found := re.search(r": (\d+) of 6 cells done", line))]
    assert done == sorted(done)
    assert len(set(done)) > 2, out
    assert done[-1] == 5
    assert sum("failed: ddim nfe=adaptive: not finite:  [2J400 of 400 samples" in line for line in lines) == 1
    assert any(re.search(r" nfe=\d+, [1-3]00 of 400 samples", line) for line in lines)
    assert any(re.search(r"calls/s, 0:00:0\d of sampling left", line) for line in lines)
    assert any("evil [31m [red]name nfe=5" in line for line in lines)


def test_it_ends_when_the_sweep_was_killed_and_says_what_is_left(tmp_path: Path) -> None:
    running = start(tmp_path / "run", 0.01, 4)
    go(running)
    watcher = watching(tmp_path / "run", stdout=subprocess.PIPE)
    out, err = watcher.communicate(timeout=60)  # a dead process that nobody has waited for is dead too
    assert running.wait() == -signal.SIGKILL
    assert watcher.returncode == 0, err
    last = out.splitlines()[-1]
    assert "3 of 6 cells done, 1 failed, nothing runs: the same `fewstep sweep` goes on with the 2 left" in last
    assert last.endswith(f"nfe=10, {BLOCK} of {SAMPLES} samples")


def test_ctrl_c_ends_it_quietly(run: Path) -> None:
    event(run, 0, "sweep_started")
    watcher = watching(run, stdout=subprocess.PIPE)
    assert watcher.stdout.readline()
    watcher.send_signal(signal.SIGINT)
    out, err = watcher.communicate(timeout=20)
    assert (watcher.returncode, out, err) == (0, "", "")


def test_on_a_terminal_it_draws_until_the_sweep_is_done(tmp_path: Path) -> None:
    running = start(tmp_path / "run", 0.05)
    ours, theirs = pty.openpty()
    watcher = watching(tmp_path / "run", stdout=theirs)
    os.close(theirs)
    drawn = read(ours)
    go(running)
    while chunk := read(ours):
        drawn += chunk
    assert watcher.wait() == 0
    assert running.wait() == 0
    text = drawn.decode()
    assert "\x1b[1A" in text, "nothing was drawn over"
    assert "━" in text
    assert text.count("5 of 6 cells done, 1 failed") >= 1
    assert "sweep ended" in text
    assert "evil [31m [red]name" in text
    assert "evil\x1b" not in text
    assert "\x1b[2J" not in text


def read(terminal: int) -> bytes:
    """What is written to it next; nothing when its other side is closed."""
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""


def test_rate_and_time_left_are_of_network_calls(run: Path) -> None:
    event(run, 0, "sweep_started")
    for i in range(4):
        event(run, 5 * (i + 1), "block_done", key=KEYS[0], start=i * BLOCK, count=BLOCK)
    Store(run).put(KEYS[0], {"key": KEYS[0]}, {})
    event(run, 22, "cell_done", key=KEYS[0])
    Store(run).put_block(KEYS[1], (0, BLOCK), {})
    event(run, 30, "block_done", key=KEYS[1], start=0, count=BLOCK)
    found = state(run)
    rate = (5 * SAMPLES + 10 * BLOCK) / 30
    left = sum(CALLS.values()) * SAMPLES - 5 * SAMPLES - 10 * BLOCK
    assert found.rate == pytest.approx(rate)
    assert found.seconds_left == pytest.approx(left / rate)
    assert (found.wanted, found.done, found.left) == (6, 1, 5)
    assert [(part.label, part.done, part.samples) for part in found.begun] == [("ddim nfe=10", BLOCK, SAMPLES)]


def test_two_machines_are_as_fast_as_both(run: Path) -> None:
    event(run, 0, "sweep_started")
    event(run, 10, "block_done", key=KEYS[0], start=0, count=BLOCK)
    one = state(run).rate
    event(run, 0, "sweep_started", run="b")
    event(run, 5, "block_done", run="b", key=KEYS[1], start=0, count=BLOCK)
    assert one == pytest.approx(5 * BLOCK / 10)
    assert state(run).rate == pytest.approx(one + 10 * BLOCK / 5)
    event(run, 6, "interrupted", run="b", signal="SIGTERM")
    assert state(run).rate == pytest.approx(one)


def test_a_clock_that_jumped_back_gives_no_rate(run: Path) -> None:
    event(run, 0, "sweep_started")
    event(run, -3600, "block_done", key=KEYS[0], start=0, count=BLOCK)
    assert state(run).rate is None
    assert state(run).seconds_left is None


@pytest.mark.parametrize("end", ["sweep_ended", "interrupted"])
def test_what_goes_on_elsewhere_is_believed_until_it_says_that_it_ended(end: str, run: Path) -> None:
    assert not state(run).live
    event(run, 0, "sweep_started")
    event(run, 1, "measuring_started")
    assert state(run).live
    assert state(run).measuring
    event(run, 2, "measuring_ended")
    assert not state(run).measuring
    event(run, 3, end)
    assert not state(run).live


def test_a_process_of_this_machine_is_looked_for(run: Path) -> None:
    RunLog(run).write("sweep_started")
    assert state(run).live
    (run / NAME).unlink()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host = os.uname().nodename
    event(run, 0, "sweep_started", process=f"{host}:{gone.pid}")
    assert not state(run).live


def test_a_cell_that_failed_and_is_made_later_has_not_failed(run: Path) -> None:
    store = Store(run)
    store.put_failure(FAILS, {"cell": {}, "cause": "one"})
    store.put_failure(FAILS, {"cell": {}, "cause": "two"})
    assert state(run).failed == (("ddim nfe=adaptive", "two"),)
    store.put(FAILS, {"key": FAILS}, {})
    assert state(run).failed == ()


def test_files_of_no_cell_and_halves_of_files_are_not_counted(run: Path) -> None:
    for name in ("cells/stray.json", f"cells/.{KEYS[0]}.json.tmp", "chunks/stray/0-100.npz", "attempts/stray.json"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).touch()
    Store(run).put_block(KEYS[1], (0, BLOCK), {})
    (run / "chunks" / KEYS[1] / f".{BLOCK}-{BLOCK}.npz.tmp").touch()
    found = state(run)
    assert (found.done, found.failed) == (0, ())
    assert [part.done for part in found.begun] == [BLOCK]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_damaged_log_or_list_of_failures_stops_no_watch(place: int, bit: int, run: Path) -> None:
    (run / NAME).unlink(missing_ok=True)
    RunLog(run).write("sweep_started", cells=6, pending=6)
    RunLog(run).write("block_done", key=KEYS[0], start=0, count=BLOCK)
    text = bytearray((run / NAME).read_bytes())
    text[place % len(text)] ^= 1 << bit
    (run / NAME).write_bytes(text)
    (run / "attempts").mkdir(exist_ok=True)
    (run / "attempts" / f"{FAILS}.json").write_bytes(b'[{"cause": "cut of')
    assert state(run).wanted == 6
    assert "cannot be read" in state(run).failed[0][1]
