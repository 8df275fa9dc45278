"""Completion in shells: real processes that are asked as bash, zsh and fish ask."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import solvers
from bench.checkpoints import CHECKPOINTS, manifest
from bench.cli import completing
from bench.distilled import shipped
from bench.metrics import METRICS
from distill import METHODS
from solvers.tune import TUNERS

FEWSTEP = str(Path(sys.executable).parent / "fewstep")


def completed(line: str, shell: str = "bash", **environment: str) -> list[str]:
    """What the shell is told when the cursor stands behind the line."""
    words = line.split(" ")
    asked = {
        "bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
        "fish": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    done = subprocess.run(
        [FEWSTEP],
        env=os.environ | asked | {"_FEWSTEP_COMPLETE": f"complete_{shell}"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("fewstep sche", ["schema"]),
        ("fewstep sweep --solvers dpm_solver_v", ["dpm_solver_v3"]),
        ("fewstep plan --solvers ddim,ect_d", ["ddim,ect_digits"]),
        ("fewstep sweep --solvers ddim,dpmpp_2m(grid=karras),ghv", ["ddim,dpmpp_2m(grid=karras),ghvb"]),
        ("fewstep sweep --solvers dpmpp_2m(gr", []),
        ("fewstep sweep --checkpoint gm", ["gmm"]),
        ("fewstep sweep --checkpoint digits,gm", ["digits,gmm"]),
        ("fewstep sweep --solvers ddim --metrics fid,frechet_e", ["fid,frechet_exact"]),
        ("fewstep ls ", ["checkpoints", "methods", "metrics", "solvers", "students"]),
        ("fewstep distill prog", ["progressive"]),
        ("fewstep distill cd --teacher gm", ["gmm"]),
        ("fewstep tune fi", ["fitted"]),
        ("fewstep pull lcm_dream", ["lcm_dreamshaper_v7"]),
        ("fewstep explain unip", ["unipc"]),
    ],
)
def test_values_are_completed(line: str, wanted: list[str]) -> None:
    assert completed(line) == wanted


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_ask_otherwise(shell: str) -> None:
    assert "ddim,dpm_solver_v3" in " ".join(completed("fewstep sweep --solvers ddim,dpm_solver_v", shell))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_be_told_how_to_ask(shell: str) -> None:
    done = subprocess.run(
        [FEWSTEP], env=os.environ | {"_FEWSTEP_COMPLETE": f"source_{shell}"}, capture_output=True, text=True
    )
    assert "_FEWSTEP_COMPLETE" in done.stdout


def test_names_are_those_that_commands_know() -> None:
    assert list(completing.registered("solvers")) == solvers.names()
    assert list(completing.registered("bench", "checkpoints")) == CHECKPOINTS.names()
    assert list(completing.metrics()) == METRICS.names()
    assert list(completing.methods()) == METHODS.names()
    assert list(completing.tuned()) == TUNERS.names()
    assert list(completing.published()) == [*manifest.section("checkpoints"), *manifest.section("students")]
    assert list(completing.students()) == [*shipped(), *manifest.section("students")]


def test_a_manifest_of_ones_own_is_asked_and_a_lost_one_says_nothing(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("checkpoints:\n  our-faces:\n    about: ours\nstudents: {}\n")
    assert completed("fewstep sweep --checkpoint our", FEWSTEP_MANIFEST=str(own)) == ["our-faces"]
    assert completed("fewstep pull our", FEWSTEP_MANIFEST=str(tmp_path / "lost.yaml")) == []


@pytest.mark.parametrize(
    ("line", "wanted"), [("fewstep sweep --metrics fid --solvers dd", "ddim"), ("fewstep distill ec", "ect")]
)
def test_it_takes_little_time_and_no_torch(line: str, wanted: str) -> None:
    ask = {"_FEWSTEP_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    told = subprocess.run(
        [sys.executable, "-X", "importtime", FEWSTEP], env=os.environ | ask, capture_output=True, text=True
    )
    assert told.stdout.split() == [wanted]
    loaded = {line.rpartition("|")[2].strip() for line in told.stderr.splitlines()}
    assert not loaded & {"torch", "numpy", "pandas", "solvers", "distill", "yaml"}

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([FEWSTEP], env=os.environ | ask, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.5  # of a processor; 0.25 where it has nothing else to do
