"""`fewstep distill`: what it writes and refuses, how it goes on, and how sweeps take what comes out."""

import json
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import solvers
from bench.checkpoints import Task, load
from bench.checkpoints.bundle import read_card
from bench.cli import app
from bench.distilling import Order, Run, distil, prepare
from bench.errors import UsageError
from bench.students import open_student
from bench.teaching import own_samples, teacher_of
from distill.batch import DATA, Draws
from tests.chaos.nest import Nest

CPU = torch.device("cpu")
PLUGIN = '''
"""A teacher, and methods that say how they were called."""
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

import solvers
from distill.method import Method
from distill.steps import jump, l2, noised
from distill.student import FewStep
from distill.trainer import Recipe


class Net(nn.Module):
    shape = (1, 4, 4)

    def __init__(self, width=8):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(17, width), nn.SiLU(), nn.Linear(width, 16))

    def forward(self, x, t):
        return self.inner(torch.cat([x.flatten(1), t[:, None]], 1)).reshape(x.shape)


def teacher(width=8):
    with torch.random.fork_rng():
        torch.manual_seed(width)
        return solvers.Denoiser(Net(width), solvers.VPLinear(), "noise")


def large():
    network = Net()
    network.shape = (1, 8, 8)
    return solvers.Denoiser(network, solvers.EDM(), "data")


@dataclass(frozen=True)
class Imitation(Method):
    """The teacher's data prediction, paler, at high levels of noise.  Nobody 2026."""

    recipe: ClassVar[Recipe] = Recipe(12, 16, 1e-3, warmup=2)
    target_decay: ClassVar[float] = 0.9
    fails_at: int = -1
    budget: int = 1

    def loss(self, players, turn, batch):
        schedule = players.teacher.schedule
        t = batch.draws.uniform(16) * 0.5 * schedule.t_max + 0.5 * schedule.t_max
        x = noised(schedule, batch.x0, batch.noise(17), t)
        with torch.no_grad():
            wanted = 0.9 * players.teacher.denoiser.at_each(x, t, "data", batch.cond)
        loss = l2(players.student.at_each(x, t, "data", batch.cond), wanted).mean()
        return loss * float("nan") if batch.draws.step == self.fails_at else loss

    def sampler(self, schedule, progress=1.0):
        return FewStep("ddim", grid="karras", budgets=(self.budget,))


@dataclass(frozen=True)
class Staged(Imitation):
    """The same in three stages of 4, 2 and 1 calls."""

    @property
    def stages(self):
        return 3

    def sampler(self, schedule, progress=1.0):
        return FewStep("ddim", grid="karras", budgets=(4 >> int(progress * 3),))
'''


@pytest.fixture(scope="module")
def imitation(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The plug-in's file."""
    file = tmp_path_factory.mktemp("plugin") / "imitation.py"
    file.write_text(PLUGIN)
    return str(file)


def run(out: Path, method: str, **given: object) -> Run:
    settings = {"teacher": "digits", "samples": 100, "points": 3, "device": "cpu"} | given
    return prepare(Order(method, out=out, **settings))  # type: ignore[arg-type]


def finished(out: Path, method: str, **given: object) -> Path:
    return distil(run(out, method, **given), lambda step, loss: None)


@pytest.fixture(scope="module")
def student(imitation: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished student of the digits."""
    return finished(tmp_path_factory.mktemp("run") / "mine", f"{imitation}:Imitation")


DIGITS = load("digits")


def test_a_run_leaves_weights_a_card_and_a_curve(student: Path, imitation: str) -> None:
    card = read_card(student)
    assert card["teacher"] == {"name": "digits", "digest": DIGITS.digest}
    assert card["recipe"]["steps"] == 12
    assert [step for step, _ in card["curve"]] == [4, 8, 12]
    best = min(card["curve"], key=lambda point: point[1])
    assert [card["best"]["step"], card["best"]["held_out_quality"]] == best
    # a step takes 16 samples through the teacher and the student, whose way back counts twice
    assert card["training"]["calls"] == 12 * 16 * (1 + 1 + 2)
    assert card["training"]["steps"] == 12
    assert card["training"]["peak_memory_mib"] > 100
    weights = load_file(student / "model.safetensors")
    assert {value.dtype for name, value in weights.items()} == {torch.float16}
    again = "--teacher digits --samples 100 --points 3 --device cpu`"
    assert f"Made again by `fewstep distill {imitation}:Imitation {again}" in (student / "README.md").read_text()
    assert (student / "curve.png").stat().st_size > 5000
    # the same command again: nothing is trained, nothing changes
    before = (student / "model.safetensors").read_bytes()
    steps: list[int] = []
    distil(run(student, f"{imitation}:Imitation"), lambda step, loss: steps.append(step))
    assert (steps, (student / "model.safetensors").read_bytes()) == ([], before)


def test_what_a_student_is_sampled_with_is_what_was_trained(student: Path) -> None:
    opened = open_student(str(student), DIGITS)
    state = torch.load(student / "state.pt", weights_only=True)["distillation"]["progress"]["best"]
    x, t, y = (
        torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)),
        torch.full((4,), 5.0),
        torch.arange(4),
    )
    found = opened.checkpoint.network(x, t, y=y)
    teacher = teacher_of(DIGITS, Task(), CPU).network
    assert not torch.allclose(found, teacher(x, t, y=y))
    teacher.load_state_dict({name: value.half().float() for name, value in state.items()}, strict=False)
    assert torch.equal(found, teacher(x, t, y=y))
    assert opened.plan(1).nfe == 1
    assert opened.checkpoint.digest == read_card(student)["sha256"] != DIGITS.digest


def test_a_sweep_takes_a_student_by_its_folder(student: Path, tmp_path: Path) -> None:
    given = ["sweep", "--solvers", f"{student},ddim", "--nfe", "1,2", "--samples", "60", "--out", str(tmp_path / "r")]
    sweep = tmp_path / "s.yaml"
    sweep.write_text("latency: false\nmetrics: [frechet_pixels]\n")
    result = CliRunner().invoke(app, [given[0], str(sweep), *given[1:]])
    assert result.exit_code == 0, result.output
    assert "runs at 1 calls, which it was trained for" in result.output
    table = pd.read_csv(tmp_path / "r" / "table.csv").set_index(["solver", "nfe"])
    assert set(table.index) == {(str(student), 1), ("ddim", 1), ("ddim", 2)}
    assert table.loc[(str(student), 1), "digest"] == read_card(student)["sha256"]
    assert table.loc[(str(student), 1), "value"] != table.loc[("ddim", 1), "value"]
    records = [json.loads(path.read_text()) for path in (tmp_path / "r" / "cells").glob("*.json")]
    by_solver = {(r["cell"]["solver"], r["cell"]["nfe"]): r["cell"]["training"] for r in records}
    assert by_solver[str(student), 1] == read_card(student)["training"]
    assert by_solver["ddim", 1] is None


def test_killed_and_gone_on_is_the_same_as_never_killed(imitation: str, tmp_path: Path, forks: Nest) -> None:
    """kill -9, between two points of the curve, then the same command: the same weights to the bit, the same curve."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    common = ["distill", f"{imitation}:Staged", "--steps", "120", "--points", "6", "--samples", "40"]
    common += ["--device", "cpu", "--out"]
    assert forks.run(*common, whole, folder=tmp_path).code == 0
    process = forks.start(*common, broken, folder=tmp_path)
    while process.wait(0.01) is None and not (broken / "2step" / "card.json").exists():
        pass
    process.send(signal.SIGKILL)
    assert process.code == -signal.SIGKILL, "the kill came too late to prove anything"
    done = torch.load(broken / "state.pt", weights_only=True)["distillation"]["progress"]["curve"]
    assert 0 < len(done) < 6
    assert forks.run(*common, broken, folder=tmp_path).code == 0
    for folder in (".", "2step", "4step"):
        a, b = (read_card(root / folder) for root in (whole, broken))
        assert (a["sha256"], a["curve"], a["best"]) == (b["sha256"], b["curve"], b["best"])
        assert a["training"]["calls"] == b["training"]["calls"]


def test_students_of_all_stages_are_kept(imitation: str, tmp_path: Path) -> None:
    out = finished(tmp_path / "staged", f"{imitation}:Staged", steps=13)
    calls = []
    for folder, budget in ((out / "4step", 4), (out / "2step", 2), (out, 1)):
        opened = open_student(str(folder), DIGITS)
        assert opened.sampler.trained_for == (budget,)
        assert opened.training is not None
        calls.append(opened.training["calls"])
    assert calls == [5 * 64, 9 * 64, 13 * 64]  # what came before belongs to a student's cost


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good(imitation: str, tmp_path: Path) -> None:
    out = tmp_path / "nan"
    given = ["distill", f"{imitation}:Imitation(fails_at=9)", "--points", "3", "--samples", "40", "--out", str(out)]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 1
    assert f"the loss became nan at step 9; {out} keeps the best student so far" in result.output
    assert "Traceback" not in result.output
    good = finished(tmp_path / "good", f"{imitation}:Imitation", steps=12, samples=40)
    kept, whole = (torch.load(path / "state.pt", weights_only=True)["distillation"] for path in (out, good))
    assert kept["loop"]["step"] == 8
    assert kept["progress"]["curve"] == whole["progress"]["curve"][:2]
    assert all(torch.isfinite(value).all() for value in load_file(out / "model.safetensors").values())


REFUSED: list[tuple[list[str], str]] = [
    (["dmd3"], "unknown distillation method 'dmd3': did you mean 'dmd2'?"),
    (["{plugin}:Imitation(budgets=2)"], "did you mean 'budget'? known: fails_at, budget"),
    (["{plugin}:Imitation(budget=many)"], "budget='many' is not of type int"),
    (["{plugin}:Imitation", "--teacher", "gmm"], "gmm has no weights that a student could begin with"),
    (["{plugin}:Imitation", "--teacher", "nowhere"], "unknown checkpoint 'nowhere'"),
    (["{plugin}:Imitation", "--student", "{plugin}:teacher"], "its shape is (1, 4, 4), and that of the teacher digits"),
    (["{plugin}:Imitation", "--student", "{plugin}:large"], "is told other things than the teacher digits"),
    (["{plugin}:Imitation", "--steps", "0"], "--steps 0: give at least 1"),
    (["{plugin}:Imitation", "--lr", "-1"], "--lr -1: give a learning rate between 0 and 1"),
    (["{plugin}:Imitation", "--precision", "fp16"], "--precision fp16: give fp32 or bf16"),
    (["{plugin}:Imitation", "--metric", "frechet_digit"], "did you mean 'frechet_digits'?"),
    (["{plugin}:Imitation", "--data", "images"], "digits is told what to make, which images alone do not say"),
    (["{plugin}:Imitation", "--prompts", "{plugin}"], "digits knows no text"),
    (["{plugin}:Staged", "--steps", "2"], "2 steps: the method needs one for each of its 3 stages"),
    (["lcm(solver=dim)"], "did you mean 'ddim'?"),
]


@pytest.mark.parametrize(("given", "message"), REFUSED)
def test_bad_input_is_one_line_and_writes_nothing(
    given: list[str], message: str, imitation: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["distill", *(word.format(plugin=imitation) for word in given), "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code != 0
    shown = " ".join(str(result.exception).split()) if result.exception else result.output
    assert message in shown
    assert isinstance(result.exception, UsageError | solvers.UnknownNameError)
    assert not out.exists()


def test_a_folder_of_another_run_is_refused(student: Path, imitation: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"another distillation's, with recipe .*'steps': 12"):
        run(student, f"{imitation}:Imitation", steps=13)
    with pytest.raises(UsageError, match="another distillation's, with method"):
        run(student, f"{imitation}:Staged")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is there already, and no unfinished distillation"):
        run(tmp_path, f"{imitation}:Imitation")


def test_a_broken_state_is_refused(imitation: str, tmp_path: Path) -> None:
    out = finished(tmp_path / "run", f"{imitation}:Imitation", steps=3)
    (out / "state.pt").write_bytes((out / "state.pt").read_bytes()[:1000])
    with pytest.raises(UsageError, match=r"state\.pt is no state of this distillation: delete it"):
        finished(out, f"{imitation}:Imitation", steps=3)


def test_a_student_stands_on_its_own_teacher_alone(student: Path, imitation: str, tmp_path: Path) -> None:
    other = load(f"{imitation}:teacher")
    with pytest.raises(UsageError, match=r"'mine' is of digits \(0c612814c2ff\), not of imitation"):
        open_student(str(student), other)
    with pytest.raises(UsageError, match="which is swept among solvers, on its teacher"):
        load(str(student))
    with pytest.raises(UsageError, match="mine': guidance = 2: the student accepts 1 alone"):
        open_student(f"{student}(guidance=2)", DIGITS)
    with pytest.raises(solvers.BudgetError, match=r"mine.*no 3 calls: the student was trained for 1"):
        open_student(str(student), DIGITS).plan(3)


def test_weights_of_another_shape_are_refused(student: Path, tmp_path: Path) -> None:
    from bench.checkpoints.bundle import write_bundle

    weights, card = load_file(student / "model.safetensors"), read_card(student)
    name = next(k for k, v in weights.items() if v.ndim == 2)
    for changed, why in (
        (weights | {name: torch.zeros(3, 3)}, "size mismatch"),
        ({k: v for k, v in weights.items() if k != name}, "its weights are not its method's"),
        (weights | {"more": torch.zeros(1)}, "its weights are not its method's: more"),
    ):
        write_bundle(tmp_path / "s", changed, card)
        with pytest.raises(UsageError, match=why):
            open_student(str(tmp_path / "s"), DIGITS)
    save_file(weights, tmp_path / "s" / "model.safetensors")
    with pytest.raises(UsageError, match="is corrupted"):
        open_student(str(tmp_path / "s"), DIGITS)


def test_a_teacher_without_data_shows_samples_of_its_own(imitation: str, tmp_path: Path) -> None:
    name = f"{imitation}:teacher"
    images = np.random.default_rng(0).integers(0, 256, (40, 1, 4, 4), dtype=np.uint8)
    np.save(tmp_path / "real.npy", images)
    given = {"teacher": name, "metric": "frechet_pixels", "reference": (str(tmp_path / "real.npy"),), "samples": 30}
    out = finished(tmp_path / "own", f"{imitation}:Imitation", pool=20, **given)
    kept = torch.load(out / "samples.pt", weights_only=True)
    assert kept.shape == (32, 1, 4, 4)  # two whole batches
    assert read_card(out)["training"]["calls"] == 12 * 16 * 4 + 32 * 20
    student = open_student(str(out), load(name))
    assert student.plan(1).nfe == 1
    shown = finished(tmp_path / "images", f"{imitation}:Imitation", data=str(tmp_path / "real.npy"), **given)
    assert not (shown / "samples.pt").exists()
    assert read_card(shown)["sha256"] != read_card(out)["sha256"]


def test_own_samples_are_the_teachers_and_keep_their_classes(tmp_path: Path) -> None:
    """Sample i of the pool comes with the label it was drawn for, in every later round too."""
    teacher = teacher_of(DIGITS, Task(), CPU)
    pool = own_samples(tmp_path / "pool.pt", teacher, DIGITS, Task(), 3, 64)
    x0, cond = pool(Draws(3, 9, 64 + 32, 32))  # the second half, in the second round
    classifier_free = solvers.plan("dpmpp_2m", DIGITS.schedule, 20, grid="karras")
    x_T = DIGITS.latents(3, 32, 32, classifier_free.times[0], 2**34).float()
    again = solvers.sample(classifier_free, teacher.denoiser, x_T, cond=cond)
    assert torch.allclose(x0, again, atol=1e-4)
    wrong = solvers.sample(classifier_free, teacher.denoiser, x_T, cond={"y": (cond["y"] + 1) % 10})
    assert not torch.allclose(x0, wrong, atol=0.1)


def test_a_student_may_begin_with_another_network(imitation: str, tmp_path: Path) -> None:
    np.save(tmp_path / "real.npy", np.random.default_rng(0).integers(0, 256, (40, 1, 4, 4), dtype=np.uint8))
    given = {"metric": "frechet_pixels", "reference": (str(tmp_path / "real.npy"),), "samples": 30, "pool": 16}
    wide = f"{imitation}:teacher(width=24)"
    out = finished(tmp_path / "w", f"{imitation}:Imitation", teacher=f"{imitation}:teacher", student=wide, **given)
    opened = open_student(str(out), load(f"{imitation}:teacher"))
    sizes = {tuple(p.shape) for p in opened.checkpoint.network.parameters()}
    assert (24, 17) in sizes


def test_digits_shown_are_digits_with_what_was_done_to_them() -> None:
    x0, cond = DIGITS.training(Draws(5, 0, 0, 400))  # type: ignore[misc]
    plain = ~cond["augment"].any(1)
    assert 0.45 < plain.double().mean() < 0.62
    from bench.checkpoints import digits

    images, labels = digits.data()["train"]
    index = torch.from_numpy(Draws(5, 0, 0, 400).integers(DATA, len(images)))
    assert torch.equal(x0[plain], images[index[plain]])
    assert torch.equal(cond["y"], labels[index])
    assert not torch.equal(x0[~plain], images[index[~plain]])
    assert torch.equal(DIGITS.training(Draws(5, 0, 200, 200))[0], x0[200:])  # type: ignore[misc]


def test_two_unknown_names_say_what_there_is(tmp_path: Path) -> None:
    for given, message in ((f"{tmp_path}/cd", "there is no student's folder"), ("ddmi", "did you mean 'ddim'?")):
        result = CliRunner().invoke(app, ["sweep", "--solvers", given, "--out", str(tmp_path / "r")])
        assert message in str(result.exception)


def test_methods_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    from bench.show import print_list

    print_list("methods", verbose=True)
    shown = capsys.readouterr().out
    for name in ("cd", "ct", "ect", "lcm", "dmd2", "progressive", "reflow", "boss", "tscd", "agd"):
        assert f"\n{name}\n" in f"\n{shown}"
    assert "arXiv" in shown
    assert "recipe: steps=" in shown
