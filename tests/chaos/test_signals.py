"""SIGINT and SIGTERM: what was begun is finished and kept, the last line says how to go on, the exit code says why."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.chaos.nest import PATIENCE, Nest
from tests.chaos.stories import Story, asked, same, story

FEWSTEP = Path(sys.executable).parent / "fewstep"
BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


def _shown(command: list[str]) -> str:
    """As the program calls itself, to be pasted into a shell."""
    return shlex.join(["fewstep", *command[1:]])


@BOTH
def test_while_it_samples_the_block_in_hand_is_finished(forks: Nest, whole: Story, tmp_path: Path, number: int) -> None:
    told = story(forks, tmp_path / "told")
    process = told.start()
    told.until(lambda: len(told.calls()) > 5)
    process.send(number)
    assert process.done() == 128 + number
    said = process.said()
    assert "Traceback" not in said
    assert f"stopped by {signal.Signals(number).name}: " in said
    assert said.endswith("cells left, nothing lost; to go on: " + _shown(["fewstep", *told.command]))
    made = len(told.calls())
    assert made < len(whole.calls()), "the signal came too late to prove anything"
    assert told.sweep().code == 0
    assert asked(told.calls()) == asked(whole.calls())
    assert same(told, whole)


@BOTH
def test_while_it_reports_it_stops_at_once(forks: Nest, whole: Story, tmp_path: Path, number: int) -> None:
    told = story(forks, tmp_path / "told")
    process = told.start()
    told.until((told.run_folder / "table.parquet").exists)
    process.send(number)
    assert process.done() == 128 + number
    assert "0 cells left, nothing lost" in process.said()
    assert "Traceback" not in process.said()
    assert told.sweep().code == 0
    assert same(told, whole)


def test_before_anything_runs_it_ends_and_leaves_nothing(forks: Nest, tmp_path: Path) -> None:
    told = story(forks, tmp_path / "told")
    told.tell("load", 0)
    process = told.start()
    told.until((told.folder / "waits").exists)
    process.send(signal.SIGINT)
    assert process.done() == 130
    assert process.said() == ""
    assert not told.run_folder.exists()


@pytest.mark.parametrize("limit", [(), ("--timeout", "60", "--workers", "2")], ids=["here", "apart"])
def test_asked_twice_it_waits_for_nothing(forks: Nest, whole: Story, tmp_path: Path, limit: tuple[str, ...]) -> None:
    told = story(forks, tmp_path / "told")
    told.tell("hang", whole.calls()[1]["t"])
    process = told.start(*limit)
    told.until(lambda: len(told.calls()) >= 2)
    process.send(signal.SIGINT)
    assert process.wait(0.5) is None, "it should wait for the block"
    process.send(signal.SIGINT)
    assert process.wait(5) == 130
    assert "Traceback" not in process.said()
    told.until(lambda: not any(psutil.pid_exists(call["pid"]) for call in told.calls()))
    told.mend()
    assert told.sweep().code == 0
    assert same(told, whole)


def _in_a_terminal(told: Story, *more: str) -> subprocess.Popen[str]:
    """The installed command, with all its processes in a group."""
    return subprocess.Popen(
        [str(FEWSTEP), *told.command, *more],
        cwd=told.folder, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # as the one that goes on with its session
    )  # fmt: skip


def test_the_terminals_ctrl_c_at_the_very_beginning_is_heard_by_one_process(tmp_path: Path, forks: Nest) -> None:
    """The others import, and would say where they were interrupted."""
    told = story(forks, tmp_path / "told")
    process = _in_a_terminal(told)
    others = psutil.Process(process.pid).children
    told.until(lambda: any("torch" in file.path for child in others() for file in child.memory_maps()))
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, said) == (130, "")


def test_work_apart_outlives_its_sweep_without_a_word(tmp_path: Path, forks: Nest) -> None:
    told = story(forks, tmp_path / "told")
    told.tell("wait", 0)
    process = _in_a_terminal(told, "--timeout", "60")
    told.until((told.folder / "waits").exists)
    process.kill()
    told.mend()
    _, said = process.communicate(timeout=PATIENCE)  # of all that hold the terminal
    assert "Traceback" not in said


def test_the_terminals_ctrl_c_leaves_a_measuring_session_to_go_on_with(tmp_path: Path, forks: Nest) -> None:
    told = story(forks, tmp_path / "told", measured=True)
    process = _in_a_terminal(told)
    told.until((told.run_folder / "session.json").exists)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert " ".join(said.split()).endswith("0 cells left, nothing lost; to go on: " + _shown(["", *told.command]))
    assert not (told.run_folder / "attempts").exists(), "no cell failed"
    assert (told.run_folder / "session.json").exists()
    said = told.sweep().said()
    measured = [json.loads(path.read_text()) for path in (told.run_folder / "latency").iterdir()]
    assert [len(found["session"]["started"]) for found in measured] == [2] * 4, said
