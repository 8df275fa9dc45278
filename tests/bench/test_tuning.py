"""`fewstep tune`: what it writes and refuses, how it goes on, and how sweeps use it.  The method is a plug-in's."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import solvers
from bench.cells import Subjects, cells
from bench.checkpoints import Checkpoint, load
from bench.checkpoints.bundle import write_bundle
from bench.checkpoints.gmm import GaussianMixture, bundle_tensors
from bench.cli import app
from bench.errors import UsageError
from bench.spec import Sweep
from bench.tuning import Done, Refused, Tuning, prepare
from solvers.learned import read

PLUGIN = '''
"""Euler steps scaled by what was learned.  Nobody 2026."""
from math import expm1

import solvers
from solvers import solver
from solvers.grid import make_grid
from solvers.learned import pick
from solvers.tune.base import Finding, tuner
from solvers.tune.reference import reference


@solver("scaled", order=1, predicts="data", grids={"*": "logsnr"}, recall=pick)
def solve(p, grid):
    x = p.start()
    for i in range(grid.steps):
        D = p.model(x, i)
        h = grid.lam[i + 1] - grid.lam[i]
        x = p.state(grid.sigma[i + 1] / grid.sigma[i] * x - p.learned["factor"] * grid.alpha[i + 1] * expm1(-h) * D)


@tuner("scaled")
def tune(problem, nfe, notes, factors=3, samples=4):
    """The best of a few factors."""
    if nfe == 3:
        raise ValueError("scaled: 3 calls are too odd")
    schedule = problem.schedule
    x_T, cond = problem.start(0, samples, schedule.t_max)
    exact = reference(problem.denoiser, x_T, cond, schedule.t_max, schedule.t_end, 20).at(schedule.t_end)
    state = notes.read() or {"errors": [], "curve": []}
    for k in range(len(state["errors"]), factors):
        plan = solve.on(make_grid("logsnr", schedule, nfe), {}, {"factor": 1 + 0.02 * k})
        x = solvers.sample(plan, problem.denoiser, x_T, cond=cond)
        error = float(((x - exact) ** 2).mean().sqrt())
        problem.denoiser.tangents += 1  # as if derivatives had been taken
        problem.denoiser.backwards += 1
        state = {"errors": [*state["errors"], error], "curve": [*state["curve"], [problem.cost.calls, error]]}
        notes.write(state)
        if k + 1 == STOP_AFTER:
            raise KeyboardInterrupt
    best = min(range(factors), key=state["errors"].__getitem__)
    return Finding("ddim(grid=logsnr)", {"factor": 1 + 0.02 * best}, tuple(map(tuple, state["curve"])))
'''

GMM = load("gmm")


def plugin(folder: Path, stop_after: int = 0) -> str:
    """The plug-in, which is interrupted after so many factors were tried."""
    file = folder / "scaled.py"
    file.write_text(PLUGIN.replace("STOP_AFTER", str(stop_after)))
    return str(file)


def tuning(folder: Path, stop_after: int = 0, **given: object) -> Tuning:
    method = f"{plugin(folder, stop_after)}:tune{given.pop('settings', '')}"
    arguments = {
        "checkpoint": "gmm", "nfe": [2, 4], "guidance": [1.0], "seed": 0, "classes": None, "prompts": None,
        "metric": None, "precision": "fp64", "device": "cpu", "out": folder / "tuned",
    }  # fmt: skip
    return prepare(method, **(arguments | given))  # type: ignore[arg-type]


def learn(folder: Path, **given: object) -> list[Done | Refused]:
    return list(tuning(folder, **given).run("the command"))


def plans(folder: Path, text: str = "", checkpoint: Checkpoint = GMM, **fields: object) -> list[solvers.Plan]:
    sweep = Sweep(
        checkpoint=checkpoint.name, solvers=(f"{plugin(folder)}:solve{text}",), tuned=str(folder / "tuned"),
        **({"nfe": (2, 4), "samples": 10} | fields),
    )  # fmt: skip
    return [cell.plan for cell in cells(sweep, Subjects(checkpoint))[0]]


def test_one_file_a_budget_and_scale_with_what_it_cost(tmp_path: Path) -> None:
    done = learn(tmp_path, guidance=[1.0, 3.0])
    names = [d.path.name for d in done if isinstance(d, Done)]
    assert names == ["nfe2-cfg1.json", "nfe4-cfg1.json", "nfe2-cfg3.json", "nfe4-cfg3.json"]
    about = read(tmp_path / "tuned" / "gmm" / "scaled" / "nfe4-cfg3.json")
    assert (about.nfe, about.guidance, about.digest, about.schedule) == (4, 3.0, GMM.digest, GMM.schedule)
    forwards = 2 * 4 * (20 + 3 * 4)  # guided, four samples: the reference, then three plans
    assert (about.cost.forwards, about.cost.calls) == (forwards, forwards + 3 * (1 + 2))
    assert about.settings == {"factors": 3, "samples": 4}
    assert about.curve[-1][0] == about.cost.calls
    (run,) = json.loads((done[0].path.parent / "runs.json").read_text())
    assert run["command"] == "the command"
    assert not list(done[0].path.parent.glob(".*"))


def test_nothing_is_learned_twice(tmp_path: Path) -> None:
    first = learn(tmp_path)
    before = {d.path: d.path.read_bytes() for d in first}
    again = learn(tmp_path, nfe=[2, 4, 5])
    assert [d.seconds is None for d in again] == [True, True, False]
    assert {path: path.read_bytes() for path in before} == before


def test_an_interrupted_tuning_goes_on_to_the_same_finding_at_the_same_cost(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (whole,) = learn(tmp_path / "whole", nfe=[4])
    for stop_after in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            learn(tmp_path, nfe=[4], stop_after=stop_after)
        assert not list((tmp_path / "tuned").rglob("*.json"))
    (resumed,) = learn(tmp_path, nfe=[4])
    assert resumed.learned.values == whole.learned.values
    assert resumed.learned.cost == whole.learned.cost  # what is done again after a stop was paid for before
    assert resumed.learned.curve == whole.learned.curve


def test_notes_of_other_settings_are_not_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path, nfe=[4], stop_after=1)
    with pytest.raises(UsageError, match=r"unfinished tuning with settings .*'factors': 3.*not .*'factors': 5"):
        learn(tmp_path, nfe=[4], settings="(factors=5)")
    with pytest.raises(UsageError, match="unfinished tuning with seed 0, not 7"):
        learn(tmp_path, nfe=[4], seed=7)


def test_a_file_learned_otherwise_is_not_taken_for_this_one(tmp_path: Path) -> None:
    learn(tmp_path, nfe=[4])
    with pytest.raises(UsageError, match="learned with seed 0, not 1: delete it or give another --out"):
        learn(tmp_path, nfe=[4], seed=1)
    with pytest.raises(UsageError, match="learned with settings"):
        learn(tmp_path, nfe=[4], classes=[0, 2])


def test_a_budget_that_cannot_be_tuned_for_is_said_and_the_rest_goes_on(tmp_path: Path) -> None:
    refused, done = learn(tmp_path, nfe=[3, 4])
    assert refused == Refused("nfe3-cfg1", "scaled: 3 calls are too odd")
    assert isinstance(done, Done)


def test_learning_uses_no_noise_of_any_evaluation_and_only_the_classes_given(tmp_path: Path) -> None:
    problem = tuning(tmp_path, classes=[0, 2]).problem(1.0)
    x_T, cond = problem.start(5, 200, 1.0)
    assert set(cond["y"].tolist()) == {0, 2}
    assert not torch.isin(x_T, GMM.latents(0, 0, 400, 1.0)).any()
    torch.testing.assert_close(problem.start(0, 205, 1.0)[0][5:], x_T, rtol=0, atol=0)


def test_sweeps_find_what_was_learned(tmp_path: Path) -> None:
    learn(tmp_path, nfe=[2, 4])
    two, four = plans(tmp_path)
    assert (two.nfe, four.nfe) == (2, 4)
    for plan in (two, four):
        about = read(tmp_path / "tuned" / "gmm" / "scaled" / f"nfe{plan.nfe}-cfg1.json")
        assert plan.learned_from == about.provenance
        assert dict(plan.options)["tuned"] == about.sha256[:12]  # not the folder, which is not the same everywhere
        assert solvers.Plan.from_json(plan.to_json()) == plan


def test_a_budget_not_learned_is_skipped_and_none_at_all_refused(tmp_path: Path) -> None:
    learn(tmp_path, nfe=[2, 4])
    assert [plan.nfe for plan in plans(tmp_path, nfe=(2, 3, 4))] == [2, 4]
    with pytest.raises(UsageError, match=r"holds 2, 4 calls at guidance 1, not 7 at guidance 1: run `fewstep tune"):
        plans(tmp_path, nfe=(7,))


def test_another_scale_is_refused_unless_it_is_asked_for(tmp_path: Path) -> None:
    learn(tmp_path)
    with pytest.raises(UsageError, match="holds 2, 4 calls at guidance 1, not 2 at guidance 4"):
        plans(tmp_path, guidance=4.0)
    assert len(plans(tmp_path, "(guidance=1)", guidance=4.0)) == 2


def test_what_another_checkpoint_taught_is_refused(tmp_path: Path) -> None:
    learn(tmp_path)
    folder = tmp_path / "gmm"
    other = GaussianMixture.random(1)
    write_bundle(folder, bundle_tensors(other), {"checkpoint": "gmm", "classes": 3, "data": "another mixture"})
    another = load(str(folder))
    with pytest.raises(UsageError, match=f"learned from checkpoint {GMM.digest[:12]}, not from gmm"):
        plans(tmp_path, checkpoint=another)


def test_what_another_schedule_or_method_taught_is_refused(tmp_path: Path) -> None:
    learn(tmp_path)
    folder = tmp_path / "tuned" / "gmm" / "scaled"
    method = solvers.method(f"{plugin(tmp_path)}:solve")
    with pytest.raises(solvers.LearnedError, match=r"was learned on VPLinear\(.*\), not on VPCosine"):
        method.build(solvers.VPCosine(), 4, options={"tuned": str(folder)})
    renamed = (folder / "nfe2-cfg1.json").read_text().replace('"method": "scaled"', '"method": "other"')
    (folder / "nfe2-cfg1.json").write_text(renamed)
    with pytest.raises(solvers.LearnedError, match="was learned by other, not by scaled"):
        method.build(GMM.schedule, 4, options={"tuned": str(folder)})


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"values"', '"value"'),
        lambda text: text.replace('"guidance": 1.0', '"guidance": "one"'),
        lambda text: "[]",
        lambda text: text.replace('"format": 1', '"format": 99'),
    ],
)
def test_a_damaged_file_is_one_clear_line(tmp_path: Path, damage: Callable[[str], str]) -> None:
    (done,) = learn(tmp_path, nfe=[4])
    done.path.write_text(damage(done.path.read_text()))
    with pytest.raises(UsageError, match=r"nfe4-cfg1\.json") as caught:
        plans(tmp_path, nfe=(4,))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["dc_slover"], "did you mean 'dc_solver'"),
        (["ddim"], "unknown tuner 'ddim'"),
        (["dc_solver(speed=9)"], "tuning dc_solver has no option 'speed'"),
        (["dc_solver", "--nfe", "5,x"], "'x' is not a whole number"),
        (["dc_solver", "--nfe", "0"], "--nfe 0"),
        (["dc_solver", "--guidance", "inf"], "not finite"),
        (["dc_solver", "--guidance", "one"], "'one' is not numbers"),
        (["dc_solver", "--classes", "12"], "12 is no class of digits"),
        (["dc_solver", "--metric", "trajectory"], "--metric trajectory"),
        (["dc_solver", "--metric", "frechet_digit"], "unknown metric 'frechet_digit'"),
        (["dc_solver", "--precision", "fp8"], "--precision fp8"),
        (["dc_solver", "--seed", "-1"], "--seed -1"),
        (["dc_solver", "--checkpoint", "digit"], "did you mean 'digits'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path: Path, arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(app, ["tune", *arguments, "--out", str(tmp_path / "tuned")])
    assert result.exit_code != 0
    assert says in str(result.exception) + result.output
    assert not (tmp_path / "tuned").exists()


def test_the_whole_way_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = plugin(tmp_path)
    tuned = CliRunner().invoke(app, ["tune", f"{file}:tune", "--checkpoint", "gmm", "--nfe", "3,4"])
    assert (tuned.exit_code, tuned.exception) == (0, None)
    assert "refused nfe3-cfg1: scaled: 3 calls are too odd" in tuned.output
    assert "tuned/gmm/scaled/nfe4-cfg1.json: truncation error" in tuned.output
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(f"checkpoint: gmm\nsolvers: [{file}:solve, ddim(grid=logsnr)]\nnfe: [4]\nlatency: false\n")
    swept = CliRunner().invoke(app, ["sweep", str(sweep), "--samples", "40", "--out", "out"])
    assert (swept.exit_code, swept.exception) == (0, None)
    table = pd.read_csv("out/table.csv")
    calls = dict(zip(table["solver"], table["tuning_calls"], strict=True))
    assert calls == {f"{file}:solve": 4 * (20 + 3 * 4) + 9, "ddim(grid=logsnr)": 0}
    board = Path("out/leaderboard.md").read_text()
    assert "## Tuned over untuned" in board
    assert f"{file}:solve / ddim(grid=logsnr)" in board
    assert "· 137 |" in board
    assert Path("out/search_cost.png").stat().st_size > 10_000
    assert Path("out/tuning_curves.svg").stat().st_size > 5_000
