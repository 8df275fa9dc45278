"""Long commands in a pipe: whole lines, no control codes whatever colours are asked for, and something to read."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.log import read_log
from tests.chaos.nest import Nest

FEWSTEP = str(Path(sys.executable).parent / "fewstep")
SWEEP = ["sweep", "--checkpoint", "gmm", "--solvers", "ddim", "--nfe", "2,3", "--samples", "60", "--out", "run"]
COLOURS = {"FORCE_COLOR": "1", "TERM": "xterm-256color"}


def piped(folder: Path, *arguments: str) -> str:
    """All that a command says in a pipe that asks for colours; it must succeed."""
    command = [FEWSTEP, *arguments]
    done = subprocess.run(command, cwd=folder, env=os.environ | COLOURS, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stderr + done.stdout


def forked(forks: Nest, folder: Path, *arguments: str) -> str:
    """As `piped`, by a process that asks for colours once all is imported: commands make their consoles then."""
    done = forks.answer(*arguments, cwd=folder, env=COLOURS)
    assert done.returncode == 0, done.stderr
    return done.stderr + done.stdout


def check(text: str) -> None:
    assert text.endswith("\n")
    found = re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
    assert not found, repr(text[found.start() : found.start() + 40])
    assert not [line for line in text.splitlines() if not line.strip()], "an empty line says nothing"


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("pipe")
    return folder, piped(folder, *SWEEP, "--set", "latency.max_batch=1")


def test_a_sweep(swept: tuple[Path, str]) -> None:
    check(swept[1])
    assert "2 cells to run, 0 done, in run" in swept[1]
    assert "wrote run/leaderboard.md" in swept[1]


def test_its_log_tells_of_every_cell(swept: tuple[Path, str]) -> None:
    events = read_log(swept[0] / "run")
    names = [entry["event"] for entry in events]
    assert names[0] == "sweep_started"
    assert names[-1] == "sweep_ended"
    assert names.count("cell_done") == 2
    assert names.index("measuring_started") > max(i for i, name in enumerate(names) if name == "cell_done")
    keys = [entry["key"] for entry in events if entry["event"] == "cell_done"]
    made = {key: sum(e["count"] for e in events if e["event"] == "block_done" and e["key"] == key) for key in keys}
    assert set(made.values()) == {60}
    assert len({entry["run"] for entry in events}) == 1


def test_a_status(swept: tuple[Path, str], forks: Nest) -> None:
    check(said := forked(forks, swept[0], "status", "run"))
    assert "2 cells done, 0 failed, 0 left" in said


def test_a_distillation(tmp_path: Path, forks: Nest) -> None:
    few = {"--steps": 2, "--batch": 8, "--samples": 20, "--points": 1, "--out": "student"}
    check(said := forked(forks, tmp_path, "distill", "cd", *(str(word) for pair in few.items() for word in pair)))
    assert "wrote student" in said


def test_a_tuning(tmp_path: Path, forks: Nest) -> None:
    few = ["--checkpoint", "gmm", "--nfe", "5", "--out", "tuned"]
    check(said := forked(forks, tmp_path, "tune", "dc_solver(samples=4)", *few))
    assert "network calls on single samples" in said
