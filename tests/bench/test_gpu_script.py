"""The script of `make gpu`, as a process: at its tiny size on a CPU it trains, ships, and does nothing twice."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import solvers
from bench.checkpoints import load
from bench.checkpoints.cifar10.data import WHERE
from tests.bench.photographs import write_photographs

HERE = Path(__file__).parents[2]
SCRIPT = HERE / "results" / "cifar10_jpeg.sh"


def run(**given: str) -> subprocess.CompletedProcess[str]:
    ours = {"BIN": str(Path(sys.executable).parent), "SIZE": "tiny", "OMP_NUM_THREADS": "1"}
    environment = {k: v for k, v in os.environ.items() if k != WHERE} | ours | given
    return subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, check=False)


def test_the_teacher_is_trained_and_shipped_once(tmp_path: Path) -> None:
    data = write_photographs(tmp_path / "photographs.parquet")
    given = {WHERE: str(data), "RUNS": str(tmp_path / "runs"), "UNTIL": "teacher"}
    first = run(**given)
    assert first.returncode == 0, first.stderr
    shipped = tmp_path / "runs" / "weights" / "cifar10_jpeg"
    files = {path.name: path.stat() for path in shipped.iterdir()}
    assert {"card.json", "README.md", "model-00001-of-00003.safetensors"} <= files.keys()
    assert max(stat.st_size for stat in files.values()) <= 16_000_000
    assert load(str(shipped)).card["data"] == "CIFAR-10 (JPEG copy)"
    again = run(**given)
    assert again.stdout == "stopped behind teacher, as UNTIL says\n"
    assert {path.name: path.stat().st_mtime_ns for path in shipped.iterdir()} == {
        name: stat.st_mtime_ns for name, stat in files.items()
    }


def test_without_images_it_says_what_is_missing() -> None:
    stopped = run()
    assert stopped.returncode != 0
    assert WHERE in stopped.stderr
    assert len(stopped.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["explore", "table", "speed"])
def test_its_sweeps_are_of_photographs(name: str) -> None:
    sweep = yaml.safe_load((HERE / "results" / f"cifar10_jpeg-{name}.yaml").read_text())
    assert sweep["checkpoint"] == "cifar10_jpeg"
    assert "frechet_cifar10_jpeg" in sweep["metrics"]
    named = {name for name in sweep["solvers"] if not name.endswith("_cifar10_jpeg")}  # the others are students
    assert named <= set(solvers.names())
    (tuned,) = re.findall(r"^  methods=\((\w[\w ]*)\)", SCRIPT.read_text(), re.M)
    assert {name for name in named if solvers.method(name).learns} <= set(tuned.split())
