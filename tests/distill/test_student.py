"""The few-step sampler that a student carries: its plans, its refusals, and that JSON keeps all of it."""

import json
from dataclasses import replace

import pytest
import torch

import solvers
from distill.student import FewStep, started
from solvers.testing import mixture, start

VP = solvers.VPDiscrete.scaled_linear()
LCM = FewStep("lcm", grid="lcm", budgets=(4, 2, 8), guidance=8.0, accepts=(3.0, 13.0), embedded=True)
DMD2 = FewStep("lcm", {"boundary": True}, labels={4: (999, 749, 499, 249, -1)})
CM = FewStep("consistency", times={1: (80.0, 0.002), 2: (80.0, 0.821, 0.002)})


def test_a_grid_by_name_labels_and_times_place_the_steps() -> None:
    assert LCM.plan(VP, 4) == solvers.plan("lcm", VP, 4, grid="lcm")
    assert DMD2.plan(VP, 4) == solvers.plan("lcm", VP, times=[1.0, 0.75, 0.5, 0.25, 0.0], boundary=True)
    assert CM.plan(solvers.EDM(), 2).times == (80.0, 0.821, 0.002)
    assert [s.trained_for for s in (LCM, DMD2, CM)] == [(2, 4, 8), (4,), (1, 2)]


@pytest.mark.parametrize(("sampler", "nfe", "known"), [(LCM, 3, "2, 4, 8"), (DMD2, 1, "4"), (CM, 0, "1, 2")])
def test_a_budget_that_it_was_not_trained_for_is_refused(sampler: FewStep, nfe: int, known: str) -> None:
    with pytest.raises(solvers.BudgetError, match=f"no {nfe} calls: the student was trained for {known}$"):
        sampler.plan(VP, nfe)


def test_a_schedule_or_solver_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="labels need a VPDiscrete schedule, not EDM"):
        DMD2.plan(solvers.EDM(), 4)
    with pytest.raises(ValueError, match="heun makes 3 calls on the steps that the student has for 2"):
        FewStep("heun", times={2: (1.0, 0.5, 0.0)}).plan(VP, 2)
    with pytest.raises(solvers.UnknownNameError, match="did you mean 'lcm'"):
        FewStep("lcn", grid="lcm", budgets=(1,)).plan(VP, 1)


def test_guidance_is_its_own_unless_another_is_accepted() -> None:
    assert [LCM.scale(), LCM.scale(3.0), LCM.scale(13), DMD2.scale(), DMD2.scale(1.0)] == [8.0, 3.0, 13, 1.0, 1.0]
    with pytest.raises(ValueError, match="guidance = 2: the student accepts 3 to 13"):
        LCM.scale(2.0)
    with pytest.raises(ValueError, match=r"guidance = 7\.5: the student accepts 1 alone"):
        DMD2.scale(7.5)


@pytest.mark.parametrize("sampler", [LCM, DMD2, CM, replace(DMD2, from_sigma=True)])
def test_json_keeps_all_of_it(sampler: FewStep) -> None:
    assert FewStep.from_dict(json.loads(json.dumps(sampler.to_dict()))) == sampler


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"solver": "lcm"}, "needs a grid with budgets, or else labels, or else times"),
        ({"solver": "lcm", "grid": "lcm"}, "needs a grid with budgets"),
        ({"solver": "lcm", "grid": "lcm", "budgets": [4], "labels": {4: [999, -1]}}, "or else labels"),
        ({"solver": "lcm", "grid": "lcm", "budgets": [0]}, "a whole number of network calls >= 1, not 0"),
        ({"solver": "lcm", "grid": "lcm", "budgets": 4}, "not a few-step sampler"),
        ({"solver": "lcm", "labels": {"four": [999]}}, "'four'"),
        ({"solver": 4, "grid": "lcm", "budgets": [4]}, "solver = 4 is not a name"),
        ({"solver": "lcm", "grid": "lcm", "budgets": [4], "guidance": 2.0}, r"guidance = 2 lies outside .* \[1, 1\]"),
        ({"solver": "lcm", "grid": "lcm", "budgets": [4], "guidance": "high"}, "not a few-step sampler"),
        ({"solver": "lcm", "steps": 4}, "has no 'steps': it has solver, options, grid"),
        ({"grid": "lcm", "budgets": [4]}, "not a few-step sampler: .*'solver'"),
        (["lcm"], "not a few-step sampler"),
    ],
)
def test_what_is_no_sampler_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FewStep.from_dict(wrong)


@pytest.mark.parametrize("name", ["euler_ancestral", "dpmpp_2m", "tcd"])
def test_a_plan_that_scales_its_start_gives_the_samples_of_a_scaled_start(name: str) -> None:
    made, x, denoiser = (
        solvers.plan(name, VP, 4, thresholding="static" if name != "tcd" else "none"),
        start(VP, 3),
        mixture(VP),
    )
    assert isinstance(made, solvers.Plan)
    z = torch.ones_like(x)
    scaled = started(made, 0.9)
    expected = solvers.sample(made, denoiser, 0.9 * x, lambda k: (k + 1) * z)
    assert torch.equal(solvers.sample(scaled, denoiser, x, lambda k: (k + 1) * z), expected)
    assert (scaled.nfe, scaled.draws, scaled.times) == (made.nfe, made.draws, made.times)
    assert solvers.Plan.from_json(scaled.to_json()) == scaled


def test_a_start_from_sigma_has_the_noise_of_the_first_label() -> None:
    euler = FewStep("euler", grid="trailing", budgets=(4,), from_sigma=True)
    assert euler.plan(VP, 4) == started(replace(euler, from_sigma=False).plan(VP, 4), float(VP.sigma(1.0)))
    times = {1: (80.0, 0.002)}
    assert FewStep("consistency", times=times, from_sigma=True).plan(solvers.EDM(), 1).instructions[0].terms == (
        (1.0, 0),
    )
