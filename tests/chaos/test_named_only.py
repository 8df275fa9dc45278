"""Code and checkpoints from outside run when they are named, and not because they lie somewhere."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.asked import HERE, Files, ask, surroundings

TOUCH = "import pathlib; pathlib.Path({!r}).joinpath(f'proof-of-{{__name__}}').touch()\n"
SOLVER = """
from solvers import solver

@solver("outside", order=1, predicts="data", grids={{"*": "logsnr"}})
def outside(p, grid):
    x = p.start()
    for i in range(grid.steps):
        x = p.state(p.model(x, i))
"""
NEVER = (
    "sitecustomize.py",
    "usercustomize.py",
    "conftest.py",
    "setup.py",
    "yaml.py",
    "numpy.py",
    "bench/__init__.py",
    "ddim.py",
)
SWEEP = "checkpoint: {}\nsolvers: [{}]\nnfe: [5]\nsamples: 8\nlatency: false\n"
METADATA = "Metadata-Version: 2.1\nName: outside\nVersion: 1\n"
ENTRY = """[fewstep.solvers]
outside = outside:outside
[fewstep.checkpoints]
outside = outside:load
[fewstep.metrics]
outside = outside:Metric
[fewstep.students]
outside = outside:load
"""


class Touches:
    """A pickle that touches a file when it is read as pickles are."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.proof,)


def traps(proofs: Path) -> Files:
    """What lies in a working directory and would leave a proof in `proofs` if it ran."""
    bait = TOUCH.format(str(proofs)).encode()
    pickled = pickle.dumps(Touches(proofs / "proof-of-pickle"))
    modules = dict.fromkeys(("outside.py", *NEVER), bait) | {"plugin.py": bait + SOLVER.format().encode()}
    models = {
        f"{folder}/{name}": pickled for folder in (".", "model", "tuned/gmm") for name in ("a.pkl", "a.pt", "b.npy")
    }
    about = {"outside-1.dist-info/METADATA": METADATA.encode(), "outside-1.dist-info/entry_points.txt": ENTRY.encode()}
    return modules | models | about | {"sweep.yaml": SWEEP.format("gmm", "ddim").encode()}


def swept(tmp_path: Path, *arguments: str) -> tuple[int, set[str], str]:
    """Exit code, proofs and stderr of a command line in a process of its own, among the traps.

    Their folder is one that packages are installed in, as far as Python can tell.
    """
    proofs = tmp_path / "proofs"
    proofs.mkdir()
    here = surroundings(tmp_path, traps(proofs))
    house = str(Path(__file__).parents[2])
    places = f"sys.path[:0] = [{house!r}]; sys.path += [{str(here)!r}]"
    start = f"import sys; {places}; from bench.cli import main; main()"
    safe = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    answer = subprocess.run(
        [sys.executable, "-P", "-c", start, *arguments], cwd=here, capture_output=True, timeout=120, env=safe
    )
    return answer.returncode, {proof.name for proof in proofs.iterdir()}, answer.stderr.decode()


def test_what_is_not_named_does_not_run(tmp_path: Path) -> None:
    code, proofs, said = swept(tmp_path, "sweep", "sweep.yaml", "--out", "out")
    assert code == 0, said
    assert proofs == set()
    assert (tmp_path / HERE / "out" / "sweep.json").exists()


@pytest.mark.parametrize("command", [["ls", "checkpoints"], ["status", "."]])
def test_listing_what_there_is_runs_nothing(command: list[str], tmp_path: Path) -> None:
    _, proofs, _ = swept(tmp_path, *command)
    assert proofs == set()


def test_what_is_named_runs_and_nothing_else(tmp_path: Path) -> None:
    """Or the traps would prove nothing."""
    code, proofs, said = swept(tmp_path, "plan", "sweep.yaml", "--solvers", "plugin.py:outside")
    assert code == 0, said
    assert proofs == {"proof-of-fewstep_plugin_plugin"}


def test_an_entry_point_runs_once_it_is_named(tmp_path: Path) -> None:
    code, proofs, said = swept(tmp_path, "plan", "sweep.yaml", "--solvers", "outside")
    assert code != 0, said  # its module holds no solver, but it was asked
    assert proofs == {"proof-of-outside"}


@pytest.mark.parametrize("name", ["a.pkl", "a.pt", "model", "model/a.pkl"])
def test_a_pickle_is_read_as_data_even_when_it_is_named(name: str, tmp_path: Path) -> None:
    proofs = tmp_path / "proofs"
    proofs.mkdir()
    surroundings(tmp_path, traps(proofs))
    answer = ask(tmp_path, ["plan", "sweep.yaml", "--checkpoint", name])
    assert answer.code == 2
    assert answer.err.count("\n") == 1
    assert list(proofs.iterdir()) == []


@pytest.mark.parametrize("name", ["b.npy", "."])
def test_nor_is_one_run_that_is_to_hold_images(name: str, tmp_path: Path) -> None:
    proofs = tmp_path / "proofs"
    proofs.mkdir()
    surroundings(tmp_path, traps(proofs))
    assert ask(tmp_path, ["score", name]).code == 2
    assert list(proofs.iterdir()) == []


def test_the_pickles_would_run_if_they_were_unpickled(tmp_path: Path) -> None:
    (tmp_path / "proofs").mkdir()
    here = surroundings(tmp_path, traps(tmp_path / "proofs"))
    pickle.loads((here / "a.pkl").read_bytes())
    assert (tmp_path / "proofs" / "proof-of-pickle").exists()
