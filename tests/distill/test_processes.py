"""Trainings that need a process of their own: two processes train the student of one, and bf16 learns as floats do."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.launchers import debug_launcher
from torch import Tensor, nn

from distill.distillation import Distillation
from tests.distill.imitations import RECIPE, Imitation, Rivals, Slow, dropping, networks_teacher
from tests.distill.toys import MU, S0, gaussian_teacher, small

ROOT = Path(__file__).parents[2]
KINDS = ("a target", "two players", "nan")


def trained(kind: str, accelerator: Accelerator) -> dict[str, Any]:
    """What a training of this kind comes to, without dropout, which no two processes share."""
    torch.manual_seed(accelerator.process_index)  # nothing that a process draws by itself matters
    student, stopped = dropping().eval(), ""
    if kind == "two players":
        recipe = replace(RECIPE, optimiser="radam")  # whose first steps are as long as the gradient
        training = Distillation(Rivals(), networks_teacher(), recipe, accelerator, student)
    else:
        method = Slow(spoilt_at=3 if kind == "nan" else -1)
        training = Distillation(method, gaussian_teacher(), RECIPE, accelerator, student)
    try:
        training.run(lambda denoiser, sampler: 1.0, 100)
    except FloatingPointError as error:
        stopped = str(error)
    state = training.loop.state_dict()
    critic = state["players"].get("critic", [{}])[0]
    found = {"weights": training.weights(), "target": state["target"], "critic": critic}
    return found | {"stopped": stopped, "calls": training.progress.calls, "processes": accelerator.num_processes}


def in_bf16(accelerator: Accelerator) -> dict[str, Any]:
    """How far a student of the Gaussian is from its teacher, and the dtypes of its weights and of a layer's output."""
    student, seen = small(), set()
    student.network.enter.register_forward_hook(lambda module, args, out: seen.add(str(out.dtype)))
    recipe = replace(RECIPE, steps=100, batch=64)
    training = Distillation(Imitation(), gaussian_teacher(), recipe, accelerator, student)
    training.run(lambda denoiser, sampler: 1.0, 1000)
    computed = list(seen)
    x = MU + torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    error = (training.averaged(x, 1.5) - training.teacher.denoiser(x, 1.5)).norm() / S0.norm() / 500**0.5
    weights = {str(p.dtype) for p in training.loop.averaged.parameters()}
    return {"error": float(error), "computed": computed, "weights": list(weights)}


def save_all(folder: str) -> None:
    """In each of two processes: every kind."""
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    found = {kind: trained(kind, accelerator) for kind in KINDS}
    torch.save(found, Path(folder) / f"{accelerator.process_index}.pt")


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes came to, and the training in bf16: accelerate's settings are a process's own."""
    folder = tmp_path_factory.mktemp("apart")
    command = [sys.executable, "-m", "tests.distill.test_processes", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return [torch.load(folder / name, weights_only=True) for name in ("0.pt", "1.pt", "bf16.pt")]


@pytest.mark.parametrize("kind", ["a target", "two players"])
def test_two_processes_train_the_student_of_one(kind: str, apart: list[dict[str, Any]]) -> None:
    one, (first, second, _) = trained(kind, Accelerator(cpu=True)), apart
    assert [found[kind]["processes"] for found in (first, second)] == [2, 2]
    assert first[kind]["calls"] == second[kind]["calls"] == one["calls"] > 0
    for part in ("weights", "target", "critic"):
        for name in one[part]:
            if "seen" not in name:  # a buffer is each process's own
                assert torch.equal(first[kind][part][name], second[kind][part][name])
                assert_close(first[kind][part][name], one[part][name])


def assert_close(a: Tensor, b: Tensor) -> None:
    """Sums are rounded otherwise: the same to 1e-4 of the largest weight."""
    torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * float(b.abs().max()) + 1e-6)


def test_another_batch_is_told_apart(apart: list[dict[str, Any]]) -> None:
    """The control: had the second process drawn what the first did, or nothing, weights would be others."""
    training = Distillation(Slow(), gaussian_teacher(), replace(RECIPE, batch=8), student=dropping().eval())
    training.run(lambda denoiser, sampler: 1.0, 100)
    found = apart[0]["a target"]["weights"]
    with pytest.raises(AssertionError):
        assert_close(*(nn.utils.parameters_to_vector(w.values()) for w in (found, training.weights())))


def test_all_processes_stop_at_the_same_step(apart: list[dict[str, Any]]) -> None:
    assert [found["nan"]["stopped"] for found in apart[:2]] == ["the loss became nan at step 3"] * 2


def test_a_batch_that_processes_cannot_share_is_refused() -> None:
    class Three(Accelerator):
        num_processes = 3

    with pytest.raises(ValueError, match="a batch of 16: 3 processes share it evenly"):
        Distillation(Slow(), gaussian_teacher(), RECIPE, Three(cpu=True), dropping())


def test_in_bf16_layers_compute_in_halves_weights_stay_single_and_it_learns(apart: list[dict[str, Any]]) -> None:
    half, full = apart[2], in_bf16(Accelerator(cpu=True))
    assert (half["computed"], half["weights"]) == (["torch.bfloat16"], ["torch.float32"])
    assert full["computed"] == ["torch.float32"]
    assert 0 < abs(half["error"] - full["error"]) < 0.05
    assert half["error"] < 0.25


if __name__ == "__main__":
    debug_launcher(save_all, (sys.argv[1],), num_processes=2)
    torch.save(in_bf16(Accelerator(cpu=True, mixed_precision="bf16")), Path(sys.argv[1]) / "bf16.pt")
