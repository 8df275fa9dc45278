"""Checkpoints as people name them: files, folders, and networks of their own."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import solvers
from bench.cell import Sampler
from bench.cells import Subjects, cells
from bench.checkpoints import Task, load
from bench.errors import UsageError
from bench.runner import prepare
from bench.spec import Sweep
from solvers import UnknownNameError
from tests.bench import tiny_pipelines

CPU = torch.device("cpu")
FIVE_LINES = """
import solvers, torch

def load():
    network = torch.nn.Conv2d(3, 3, 3, padding=1)
    network.forward = lambda x, t, conv=network.forward: conv(x)
    network.shape = (3, 8, 8)
    return solvers.Denoiser(network, solvers.VPLinear(), predicts="noise")

class Labelled(torch.nn.Linear):
    shape, classes = (4,), 7

    def forward(self, x, t, y):
        return super().forward(x) * (1 + y[:, None].to(x.dtype))

def labelled(width=4):
    torch.manual_seed(width)
    network = Labelled(4, 4)
    return solvers.Denoiser(network, solvers.EDM(), predicts="data")

def fixed(strength):
    network = labelled().network
    network.strength = strength
    return solvers.Denoiser(network, solvers.EDM(), predicts="data")

def shapeless():
    return solvers.Denoiser(torch.nn.Identity(), solvers.EDM(), predicts="data")

def guided():
    network = Labelled(4, 4)
    return solvers.Denoiser(network, solvers.EDM(), predicts="data", guidance=solvers.Guidance(2.0, {}))

def bare():
    return solvers.Denoiser(lambda x, t: x, solvers.EDM(), predicts="data")

def miscounted():
    network = Labelled(4, 4)
    network.classes = -1
    return solvers.Denoiser(network, solvers.EDM(), predicts="data")

def nothing():
    return 3

def broken():
    raise OSError("my disk is full")
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FIVE_LINES)
    return path


def test_a_denoiser_is_a_checkpoint(mine: Path, tmp_path: Path) -> None:
    checkpoint = load(f"{mine}:load")
    assert (checkpoint.name, checkpoint.shape, checkpoint.kind) == ("mine.py:load", (3, 8, 8), "image")
    assert checkpoint.classes == ()
    sweep = Sweep(
        checkpoint=f"{mine}:load", solvers=("ddim",), nfe=(4,), samples=5, metrics=("diversity(features=pixels)",)
    )
    job = prepare(sweep.model_copy(update={"latency": None, "metrics": ("trajectory",)}), tmp_path / "run", "cpu")
    (cell,) = job.cells
    sampler = Sampler(cell, checkpoint, CPU)
    x_T, cond = sampler.inputs(0, 5)
    assert cond == {}
    expected = solvers.sample(
        cell.plan, solvers.Denoiser(lambda x, t: checkpoint.network.network(x, t), solvers.VPLinear()), x_T
    )
    assert torch.allclose(sampler.draw(0, x_T, cond), expected)


def test_classes_options_precision_and_digest(mine: Path) -> None:
    wide, other = load(f"{mine}:labelled"), load(f"{mine}:labelled(width=5)")
    assert (len(wide.classes), wide.kind) == (7, "vector")
    assert wide.digest == load(f"{mine}:labelled").digest != other.digest
    strong, weak = load(f"{mine}:fixed(strength=2)"), load(f"{mine}:fixed(strength=1)")
    assert strong.digest != weak.digest  # whose weights are the same
    for precision, error in (("fp32", 1e-6), ("bf16", 0.05)):
        sweep = Sweep(checkpoint="x", solvers=("heun",), nfe=(5,), samples=9, precision=precision, metrics=("energy",))
        (cell,), _ = cells(sweep, Subjects(wide))
        sampler = Sampler(cell, wide, CPU)
        assert next(sampler.network.parameters()).dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        x = sampler.draw(0, *sampler.inputs(0, 9))
        exact = cells(sweep.model_copy(update={"precision": ("fp64",)}), Subjects(wide))[0][0]
        fine = Sampler(exact, wide, CPU)
        y = fine.draw(0, *fine.inputs(0, 9))
        assert x.dtype == torch.float32
        assert (x - y).abs().max() < error * y.abs().max()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("shapeless", "its network must say what it makes, as in network.shape = (3, 32, 32)"),
        ("guided", "guidance belongs to the sweep"),
        ("bare", "its network is a function, not a torch.nn.Module"),
        ("miscounted", "network.classes = -1: give how many classes it knows"),
        ("nothing", "gave a int, not a solvers.Denoiser"),
        ("broken", "cannot be made: OSError: my disk is full"),
        ("labelled(depth=3)", "TypeError: labelled() got an unexpected keyword argument 'depth'"),
    ],
)
def test_what_is_no_checkpoint_is_refused_in_one_line(mine: Path, text: str, why: str) -> None:
    with pytest.raises(UsageError) as error:
        load(f"{mine}:{text}")
    assert why in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "kind", "why"),
    [
        ("digit", UnknownNameError, "did you mean 'digits'"),
        ("./nowhere", UsageError, "checkpoint ./nowhere is not there"),
        ("/", UsageError, "holds no checkpoint: give a folder of diffusers"),
        ("digits(resolution=8)", UsageError, "digits takes no options: resolution"),
        ("digits(", UsageError, "is not of the form name or name(option=value, ...)"),
        ("no_module_of_this_name:load", UnknownNameError, "No module named"),
    ],
)
def test_names_that_lead_nowhere(text: str, kind: type[Exception], why: str) -> None:
    with pytest.raises(kind) as error:
        load(text)
    assert why in str(error.value)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.onnx"
    path.write_bytes(b"\0" * 10)
    with pytest.raises(UsageError, match=r"weights\.onnx holds no checkpoint"):
        load(str(path))


def test_a_task_that_a_checkpoint_cannot_be_asked_is_refused(mine: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\n")
    asked = {"checkpoint": f"{mine}:load", "solvers": ("ddim",), "nfe": (4,), "metrics": ("trajectory",)}
    for further, why in (
        ({"guidance": 2.0}, "guidance = 2: mine.py:load has neither classes nor text; give 1"),
        (
            {"guidance": 1.0, "cfg_plus_plus": True},
            "guidance = 1: mine.py:load has neither classes nor text; leave cfg_plus_plus out",
        ),
        ({"classes": (0,)}, "classes: 0 is no class of mine.py:load, which has none"),
        ({"prompts": str(tmp_path / "prompts.txt")}, "prompts prompts.txt: mine.py:load knows no text"),
    ):
        with pytest.raises(UsageError) as error:
            prepare(Sweep(**(asked | further)), tmp_path / "run", "cpu")
        assert str(error.value) == why
    assert load(f"{mine}:load").denoiser(Task(), CPU, torch.float32).calls == 0


def test_a_folder_is_called_by_its_whole_name(folders: Callable[..., Path], tmp_path: Path) -> None:
    shutil.copytree(folders(tiny_pipelines.ddpm), tmp_path / "mine-v1.5")
    found = load(str(tmp_path / "mine-v1.5"))
    assert found.name == "mine-v1.5"
    assert found.digest == load(str(folders(tiny_pipelines.ddpm))).digest  # contents, never paths
