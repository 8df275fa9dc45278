"""Schedulers of diffusers as plans."""

import dataclasses
import math
import re
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

import solvers
from bench.checkpoints.gmm import OnSchedule
from bench.words import parse
from solvers.model import Prediction
from solvers.plan import Combine, Evaluate
from tests.golden import Case, cases, mixture
from tests.solvers.common import denoiser, start
from tests.solvers.pipelines import Draws, call_times, seeded

VP = solvers.VPDiscrete.linear()
FLOW = solvers.RectifiedFlow(shift=3.0)
CLASSES = {
    "ddim": "DDIMScheduler", "pndm": "PNDMScheduler", "deis": "DEISMultistepScheduler", "lms": "LMSDiscreteScheduler",
    r"dpm(pp)?\ds": "DPMSolverSinglestepScheduler", r"(sde)?dpm(pp)?\dm|sdedpm": "DPMSolverMultistepScheduler",
    "heun": "HeunDiscreteScheduler", "kdpm2": "KDPM2DiscreteScheduler", "euler": "EulerDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler", "flow-heun": "FlowMatchHeunDiscreteScheduler",
    "flow-euler": "FlowMatchEulerDiscreteScheduler",
}  # fmt: skip


def recorded_by_diffusers(case: Case) -> bool:
    """All but the runs whose options are lists, and half of those that differ in the budget alone."""
    budget = case.id.endswith("nfe15") or "cfg4" in case.id
    return bool(re.match("df-(?!unip3)|flow-(euler|heun)-", case.id)) and not (budget and "linspace" in case.id)


def plan_of(case: Case) -> solvers.Plan:
    """The scheduler of the recording as a plan."""
    name = next(c for p, c in CLASSES.items() if re.match(p, case.id.removeprefix("df-")))
    grid = case.manifest.get("schedule", {})
    options = {k: v for k, v in case.options.items() if k != "step_kwargs"} | (case.options.get("step_kwargs") or {})
    if "timestep_spacing" in grid:
        options["timestep_spacing"] = grid["timestep_spacing"]
    options |= {
        v: True for k, v in (("karras", "use_karras_sigmas"), ("lu", "use_lu_lambdas")) if grid.get("grid") == k
    }
    options |= {"steps_offset": 1} if "off1" in case.id else {}
    schedule = solvers.RectifiedFlow() if case.id.startswith("flow") else VP
    return solvers.plan(f"diffusers:{name}", schedule, case.manifest["nfe"], **options)


def at(plan: solvers.Plan, times: list[float]) -> solvers.Plan:
    """The plan with its calls made at other times."""
    moved = iter(times)
    instructions = [dataclasses.replace(i, t=next(moved)) if isinstance(i, Evaluate) else i for i in plan.instructions]
    return dataclasses.replace(plan, instructions=tuple(instructions))


@pytest.mark.parametrize("case", [c for c in cases() if recorded_by_diffusers(c)], ids=lambda case: case.id)
def test_the_plan_of_a_scheduler_reproduces_its_run_in_float64(case: Case) -> None:
    """To 1e-4, as the schedulers keep sigmas in float32, which few steps amplify; half of the runs agree to 2e-7.

    Schedulers with states x / alpha round numbers up to 157 and, at sigma = 0.01, multiply that by 1 / sigma: 1e-3.

    The recording calls the network at the level of each state, which on Karras' and Lu's grids is not that of the
    rounded timestep, so that the calls are moved there first.
    """
    plan, x_T = plan_of(case), case.x_init
    exploding = isinstance(case.schedule, solvers.EDM)  # a scheduler whose states are x / alpha
    with np.errstate(divide="ignore"):
        sigma = case.array("call_sigma") / case.array("call_alpha")
    moved = at(plan, np.minimum(plan.schedule.t_of_lam(-np.log(sigma)), 1.0).tolist())
    network = case.denoiser()
    if exploding:
        x_T = x_T / _init_noise_sigma(plan, float(sigma[0]))
        network = solvers.Denoiser(OnSchedule(mixture(), VP), VP, "noise", network.guidance)
    x = solvers.sample(moved, network, x_T, noise=lambda k: case.noise[k], cond=case.cond)
    torch.testing.assert_close(x, case.x_final, rtol=0, atol=1e-3 if exploding else 1e-4)


def _init_noise_sigma(plan: solvers.Plan, sigma: float) -> float:
    first = plan.instructions[0]
    scale = first.terms[0][0] if isinstance(first, Combine) and len(first.terms) == 1 else 1.0
    return scale * math.sqrt(1 + sigma**2)


def trajectory(plan: solvers.Plan, predicts: Prediction = "noise") -> Tensor:
    """The states that a network is called at, then the sample: no two plans agree unless their coefficients do."""
    seen: list[Tensor] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x.clone())
        return torch.sin(x + 2 * t.reshape(-1, 1))

    x_T = start(plan.schedule, 4)
    x = solvers.sample(plan, solvers.Denoiser(network, plan.schedule, predicts), x_T, Draws(x_T.shape, seeded()))
    return torch.stack([*seen, x])


def same(a: Tensor, b: Tensor) -> bool:
    """To the float32 of a scheduler's sigmas."""
    return bool((a - b).abs().max() <= 1e-5 * b.abs().max())


SAME = [
    ("ddim", {}, "DDIMScheduler", {"clip_sample": False}),
    ("ddim", {"eta": 1.0}, "DDIMScheduler", {"clip_sample": False, "eta": 1.0}),
    ("ddim", {"eta": 1.0}, "DDPMScheduler", {"clip_sample": False}),
    ("ddim", {}, "EulerDiscreteScheduler", {"timestep_spacing": "leading"}),
    ("heun", {}, "HeunDiscreteScheduler", {"timestep_spacing": "leading"}),
    ("dpmpp_2m", {"lower_order_final": "below_15"}, "DPMSolverMultistepScheduler", {}),
    ("dpmpp_2m", {"lower_order_final": "below_15"}, "DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}),
    ("dpmpp_3m", {"lower_order_final": "below_15"}, "DPMSolverMultistepScheduler", {"solver_order": 3}),
    ("dpm_solver_2m", {"lower_order_final": "below_15"}, "DPMSolverMultistepScheduler",
     {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
    ("dpmpp_sde_2m", {}, "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("deis_logrho", {"order": 2}, "DEISMultistepScheduler", {}),
    ("deis_logrho", {"order": 3}, "DEISMultistepScheduler", {"solver_order": 3}),
    ("unipc", {"order": 2}, "UniPCMultistepScheduler", {}),
    ("unipc", {"order": 3}, "UniPCMultistepScheduler", {"solver_order": 3}),
    ("unipc", {"order": 2, "variant": "bh1"}, "UniPCMultistepScheduler",
     {"solver_type": "bh1", "final_sigmas_type": "sigma_min"}),
    ("euler_ancestral", {}, "EulerAncestralDiscreteScheduler", {"timestep_spacing": "leading"}),
    ("lms", {}, "LMSDiscreteScheduler", {"timestep_spacing": "leading"}),
]  # fmt: skip


@pytest.mark.parametrize("nfe", [5, 9])
@pytest.mark.parametrize(("name", "options", "scheduler", "theirs"), SAME)
def test_our_solver_is_diffusers_scheduler(
    name: str, options: dict[str, Any], scheduler: str, theirs: dict[str, Any], nfe: int
) -> None:
    recorded = solvers.plan(f"diffusers:{scheduler}", VP, nfe, **theirs)
    ours = solvers.plan(name, VP, times=recorded.times, **options)
    assert same(trajectory(ours), trajectory(recorded))


@pytest.mark.parametrize(("name", "scheduler"), [("flow_euler", "Euler"), ("flow_heun", "Heun"), ("ddim", "Euler")])
def test_our_flow_solver_is_diffusers_scheduler(name: str, scheduler: str) -> None:
    recorded = solvers.plan(f"diffusers:FlowMatch{scheduler}DiscreteScheduler", FLOW, 7)
    ours = solvers.plan(name, FLOW, times=recorded.times)
    assert same(trajectory(ours, "velocity"), trajectory(recorded, "velocity"))


@pytest.mark.parametrize(
    ("name", "options", "buffers"),
    [("DDIMScheduler", {"clip_sample": False}, 2), ("HeunDiscreteScheduler", {}, 3), ("DEISMultistepScheduler", {}, 3),
     ("DPMSolverMultistepScheduler", {}, 4), ("UniPCMultistepScheduler", {}, 6), ("LMSDiscreteScheduler", {}, 6),
     ("PNDMScheduler", {}, 8)],
)  # fmt: skip
def test_a_recorded_plan_keeps_few_tensors_however_long(name: str, options: dict[str, Any], buffers: int) -> None:
    plan = solvers.plan(f"diffusers:{name}", VP, 33, **options)
    assert plan.buffers <= buffers
    assert max(len(i.terms) for i in plan.instructions if isinstance(i, Combine)) <= 6


@pytest.mark.parametrize(
    ("name", "options"),
    [("DPMSolverMultistepScheduler", {}), ("UniPCMultistepScheduler", {}), ("DDIMScheduler", {"clip_sample": False})],
)
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_a_recorded_plan_is_what_the_scheduler_itself_does(name: str, options: dict[str, Any], prediction: str) -> None:
    theirs = getattr(diffusers, name)(prediction_type=prediction, trained_betas=list(VP.betas), **options)
    theirs.set_timesteps(8)
    plan = solvers.plan(f"diffusers:{name}", VP, 8, prediction_type=prediction, **options)
    ours = solvers.to_diffusers(plan, prediction)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps)
    results = []
    for scheduler in (theirs, ours):
        x = torch.randn(2, 3, 4, 4, generator=seeded())
        for t in scheduler.timesteps:
            x = scheduler.step(torch.sin(3 * x + t), t, x).prev_sample
        results.append(x)
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)  # its alphas are products in float32


def test_timesteps_that_rounding_makes_equal_are_steps_of_their_own() -> None:
    coarse = solvers.VPDiscrete.linear(0.01, 0.5, N=40)
    plan = solvers.plan("diffusers:DPMSolverMultistepScheduler", coarse, 40, use_karras_sigmas=True)
    assert call_times(plan)[:2] == [1.0, 1.0]
    assert plan.nfe == 40
    assert plan.times[-1] == 0


@pytest.mark.parametrize("schedule", [solvers.VPLinear(), solvers.VPCosine()], ids=["VPLinear", "VPCosine"])
@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_a_continuous_schedule_is_given_as_betas(name: str, schedule: solvers.Schedule) -> None:
    x_T = start(schedule, 4)
    fine = solvers.sample(solvers.plan("dpmpp_2m", schedule, 400, t_end=1e-4), denoiser(schedule), x_T)
    errors = []
    for nfe in (10, 20, 40):
        plan = solvers.plan(f"diffusers:{name}", schedule, nfe, use_karras_sigmas=True)
        assert plan.times[0] == schedule.t_max
        errors.append((solvers.sample(plan, denoiser(schedule), x_T) - fine).abs().max().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.05


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "PNDMScheduler"])
def test_budgets_are_spent_to_the_call(name: str) -> None:
    clip = {"clip_sample": False} if name.startswith("DD") else {}
    for nfe in (*range(1, 20), 25):
        try:
            plan = solvers.plan(f"diffusers:{name}", VP, nfe, **clip)
        except solvers.BudgetError:
            assert name == "PNDMScheduler"
            assert nfe < 13
            continue
        assert plan.nfe == nfe
        assert plan.times[0] > plan.times[-1]


def test_budgets_that_a_scheduler_cannot_spend() -> None:
    with pytest.raises(solvers.BudgetError, match="cannot spend 8 calls: it can spend 5, 7, 9"):
        solvers.plan("diffusers:HeunDiscreteScheduler", VP, 8)
    with pytest.raises(solvers.BudgetError, match="cannot spend 1001 calls: it can spend 998, 999, 1000"):
        solvers.plan("diffusers:DDIMScheduler", VP, 1001, clip_sample=False)
    with pytest.raises(solvers.BudgetError, match=">= 1, not 0"):
        solvers.plan("diffusers:DDIMScheduler", VP, 0, clip_sample=False)


@pytest.mark.parametrize(
    ("name", "schedule", "options", "message"),
    [
        ("DDIMScheduler", VP, {}, "not linear, so it is no plan: set clip_sample=False$"),
        (
            "DDPMScheduler",
            VP,
            {"thresholding": True},
            "set thresholding=False|set clip_sample=False, thresholding=False",
        ),
        ("DPMSolverMultistepScheduler", VP, {"thresholding": True}, "set thresholding=False$"),
        ("DPMSolverMultistepScheduler", VP, {"solver_ordr": 1}, "has no option 'solver_ordr': it has solver_order"),
        ("DPMSolverMultistepScheduler", VP, {"solver_order": "two"}, "solver_order='two' is not a int"),
        ("DPMSolverMultistepScheduler", VP, {"beta_start": 0.1}, "has no option 'beta_start'"),
        ("DPMSolverMultistepScheduler", VP, {"algorithm_type": "dpmsolver"}, "Please choose `sigma_min` instead"),
        ("DPMSolverMultistepScheduler", VP, {"grid": "logsnr"}, "places its own steps"),
        ("DPMSolverMultistepScheduler", VP, {"prediction_type": "eps"}, "prediction_type given as eps"),
        ("DPMSolverMultistepScheduler", solvers.EDM(), {}, "cannot be given EDM: a scheduler with betas"),
        ("EulerDiscreteScheduler", FLOW, {}, "cannot be given RectifiedFlow"),
        ("FlowMatchEulerDiscreteScheduler", VP, {}, "cannot be given VPDiscrete"),
        ("UniPCMultistepScheduler", VP, {"solver_type": "bh1"}, "not finite"),
    ],
)
def test_what_cannot_be_a_plan(name: str, schedule: solvers.Schedule, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        solvers.plan(f"diffusers:{name}", schedule, 10, **options)
    assert str(raised.value).startswith(f"diffusers:{name}")


def test_a_scheduler_that_diffusers_lacks() -> None:
    with pytest.raises(solvers.UnknownNameError, match="did you mean 'DDIMScheduler'"):
        solvers.method("diffusers:DDIMSchedular")


def test_the_command_line_names_schedulers() -> None:
    name, options = parse(
        "solver", "diffusers:DPMSolverMultistepScheduler(algorithm_type='sde-dpmsolver++', solver_order=2)"
    )
    plan = solvers.plan(name, VP, 6, **options)
    assert (plan.method, plan.order, plan.draws) == ("diffusers:DPMSolverMultistepScheduler", 2, 5)
    assert dict(plan.options)["algorithm_type"] == "sde-dpmsolver++"
    assert solvers.Plan.from_json(plan.to_json()) == plan
    assert diffusers.__version__ in solvers.method(name).summary
