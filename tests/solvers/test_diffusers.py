"""Plans as schedulers of diffusers."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, UNet2DModel
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import solvers
from solvers.diffusers import PlanScheduler
from solvers.grid import GRIDS
from tests.solvers.common import PLANNED, denoiser, some_plan, start
from tests.solvers.pipelines import Draws, call_times, seeded

VP = solvers.VPDiscrete.linear()
FLOW = solvers.RectifiedFlow(shift=3.0)


def drive(scheduler: PlanScheduler, plan: solvers.Plan, x: Tensor, steps: range | None = None, seed: int = 1) -> Tensor:
    """The loop of a pipeline, on the mixture's denoiser at the plan's own times."""
    network, times, generator = denoiser(plan.schedule), call_times(plan), seeded(seed)
    for k in steps or range(len(scheduler.timesteps)):
        t = scheduler.timesteps[k]
        x = scheduler.step(network(x, times[k], "noise"), t, x, generator=generator).prev_sample
    return x


@PLANNED
def test_a_scheduler_makes_the_sample_of_its_plan(name: str) -> None:
    plan = some_plan(name, VP)
    scheduler, x_T = solvers.to_diffusers(plan), start(VP, 4)
    expected = solvers.sample(plan, denoiser(VP), x_T, Draws(x_T.shape, seeded()))
    assert len(scheduler.timesteps) == plan.nfe
    torch.testing.assert_close(drive(scheduler, plan, x_T), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("schedule", [solvers.VPLinear(), solvers.VPCosine(), solvers.RectifiedFlow()])
@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp_2m"])
def test_on_any_schedule_and_prediction_type(name: str, schedule: solvers.Schedule) -> None:
    plan, x_T = solvers.plan(name, schedule, 7, t_start=0.99), start(schedule, 4)
    expected = solvers.sample(plan, denoiser(schedule), x_T)
    for prediction, predicts in (("epsilon", "noise"), ("sample", "data"), ("v_prediction", "v")):
        scheduler, x = solvers.to_diffusers(plan, prediction), x_T
        for t, time in zip(scheduler.timesteps, call_times(plan), strict=True):
            x = scheduler.step(denoiser(schedule)(x, time, predicts), t, x, return_dict=False)[0]
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-9)


def test_a_flow_predicts_velocity_unless_told_otherwise() -> None:
    plan = solvers.plan("ddim", FLOW, 4, grid="shifted")
    x, scheduler = start(FLOW, 4), solvers.to_diffusers(plan)
    for k, t in enumerate(call_times(plan)[1:], 1):  # at t = 1 the mixture's denoiser has no velocity to give
        scheduler.set_begin_index(k)
        v = denoiser(FLOW)(x, t, "velocity")
        following = plan.times[k + 1]
        torch.testing.assert_close(scheduler.step(v, 0, x).prev_sample, x + (following - t) * v)
    assert scheduler.config.use_flow_sigmas


def tiny_unet() -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip


def images(pipeline: DDPMPipeline, nfe: int) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    out = pipeline(batch_size=2, generator=seeded(), num_inference_steps=nfe, output_type="np")
    return np.asarray(out.images)


@pytest.mark.parametrize(
    ("name", "nfe", "options"),
    [("ddim", 5, {}), ("dpmpp_2m", 6, {}), ("heun", 7, {}), ("ddim", 5, {"eta": 1.0})],
    ids=["ddim", "dpmpp_2m", "heun", "ddim-eta1"],
)
def test_a_pipeline_makes_the_images_of_the_plan(name: str, nfe: int, options: dict[str, Any], tmp_path: Path) -> None:
    unet, plan = tiny_unet(), solvers.plan(name, VP, nfe, grid="trailing", **options)

    def network(x: Tensor, t: Tensor) -> Tensor:
        return unet(x, t * 1000 - 1).sample

    generator = seeded()
    x_T = torch.randn(2, 3, 8, 8, generator=generator)
    draws = Draws(x_T.shape, generator, torch.float32)
    x = solvers.sample(plan, solvers.Denoiser(network, VP), x_T, draws)
    expected = (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    pipeline = DDPMPipeline(unet, solvers.to_diffusers(plan))
    np.testing.assert_allclose(images(pipeline, nfe), expected, rtol=0, atol=1e-5)  # float32 labels
    first = images(pipeline, nfe)
    np.testing.assert_array_equal(images(pipeline, nfe), first)
    pipeline.save_pretrained(tmp_path)
    np.testing.assert_array_equal(images(DDPMPipeline.from_pretrained(tmp_path), nfe), first)


@PLANNED
def test_a_scheduler_is_saved_whole(name: str, tmp_path: Path) -> None:
    scheduler = solvers.to_diffusers(some_plan(name, VP), "v_prediction")
    scheduler.save_pretrained(tmp_path)
    read = PlanScheduler.from_pretrained(tmp_path)
    assert read.plan == scheduler.plan
    assert read.config.prediction_type == "v_prediction"
    assert len(read) == 1000


@pytest.mark.parametrize(
    ("name", "options"), [("ddim", {}), ("dpmpp_2m", {}), ("heun", {}), ("ddim", {"eta": 1.0}), ("dpmpp_sde", {})],
    ids=["ddim", "dpmpp_2m", "heun", "ddim-eta1", "dpmpp_sde"],
)  # fmt: skip
def test_nothing_is_kept_of_a_run_that_was_given_up(name: str, options: dict[str, float]) -> None:
    plan, x_T = solvers.plan(name, VP, 9, **options), start(VP, 4)
    scheduler = solvers.to_diffusers(plan)
    fresh = drive(scheduler, plan, x_T)
    for given_up in range(1, 5):
        scheduler.set_timesteps(9)
        drive(scheduler, plan, x_T + 1, range(given_up), seed=2)
        scheduler.set_timesteps(9)
        torch.testing.assert_close(drive(scheduler, plan, x_T), fresh, rtol=0, atol=0)


def test_a_state_that_the_pipeline_changed_is_the_one_that_is_used() -> None:
    plan, x_T = solvers.plan("ddim", VP, 5), start(VP, 4)
    results = []
    for change in (0, 1):
        scheduler, noise = solvers.to_diffusers(plan), torch.zeros_like(x_T)
        x = scheduler.step(noise, 0, x_T).prev_sample + change
        results.append(scheduler.step(noise, 0, x).prev_sample)
    alpha = VP.alpha(plan.times)
    torch.testing.assert_close(results[1] - results[0], torch.full_like(x_T, alpha[2] / alpha[1]))


def test_calls_past_the_last_are_an_error() -> None:
    plan, x_T = solvers.plan("ddim", VP, 2), start(VP, 4)
    scheduler = solvers.to_diffusers(plan)
    drive(scheduler, plan, x_T)
    with pytest.raises(ValueError, match=r"all 2 calls .* set_timesteps"):
        scheduler.step(x_T, 0, x_T)


def test_the_network_is_told_what_diffusers_schedulers_tell_it() -> None:
    ours = solvers.to_diffusers(solvers.plan("ddim", VP, 10, grid="trailing")).timesteps
    theirs = diffusers.DDIMScheduler(timestep_spacing="trailing")
    theirs.set_timesteps(10)
    assert ours.dtype == theirs.timesteps.dtype == torch.int64
    torch.testing.assert_close(ours, theirs.timesteps)
    between = solvers.to_diffusers(solvers.plan("ddim", solvers.VPLinear(), 4, grid="uniform")).timesteps
    torch.testing.assert_close(between, torch.tensor([999.0, 749.25, 499.5, 249.75]))
    assert solvers.to_diffusers(solvers.plan("ddim", VP, 3, grid="logsnr")).timesteps.dtype == torch.float32
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    flow.set_timesteps(sigmas=np.linspace(1, 0.25, 4).tolist())
    mine = solvers.to_diffusers(solvers.plan("ddim", FLOW, 4, grid="shifted")).timesteps
    torch.testing.assert_close(mine.float(), flow.timesteps)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_edm_is_scaled_as_in_the_scheduler_of_diffusers(prediction: str) -> None:
    theirs = diffusers.EDMEulerScheduler(sigma_data=0.7, prediction_type=prediction)
    theirs.set_timesteps(6)
    plan = solvers.plan("ddim", solvers.EDM(), times=theirs.sigmas.double().tolist())
    ours = solvers.to_diffusers(plan, prediction, sigma_data=0.7)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps)
    assert ours.init_noise_sigma == pytest.approx(80)
    results = []
    for scheduler in (theirs, ours):
        x = 80 * torch.randn(4, 3, generator=seeded())
        for t in scheduler.timesteps:
            output = torch.sin(scheduler.scale_model_input(x, t) * 2 + t)
            x = scheduler.step(output, t, x).prev_sample
        results.append(x)
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("schedule", "name"), [(VP, "DDIMScheduler"), (solvers.EDM(), "EDMEulerScheduler")])
def test_noise_is_added_as_diffusers_adds_it(schedule: solvers.Schedule, name: str) -> None:
    theirs = getattr(diffusers, name)()
    theirs.set_timesteps(8)
    times = {"grid": "leading"} if schedule is VP else {"t_end": 0.002, "grid": "karras"}
    ours = solvers.to_diffusers(solvers.plan("ddim", schedule, 8, **times))
    x, z = torch.randn(2, 4, 3, 2, 2, generator=seeded()).unbind()
    for labels in (theirs.timesteps[2:3], theirs.timesteps[torch.tensor([0, 1, 5, 7])]):
        torch.testing.assert_close(ours.add_noise(x, z, labels), theirs.add_noise(x, z, labels), rtol=1e-4, atol=1e-4)


@given(
    st.sampled_from(["ddim", "dpmpp_2m", "heun"]),
    st.sampled_from([g for g in GRIDS if g not in ("shifted", "logsnr_2", "logsnr_3")]),
    st.integers(2, 12),
    st.integers(2, 12),
)
def test_another_budget_is_spent_on_the_same_grid(name: str, grid: str, nfe: int, other: int) -> None:
    try:
        plan, expected = (solvers.plan(name, VP, n, grid=grid) for n in (nfe, other))
    except solvers.BudgetError:
        return
    scheduler = solvers.to_diffusers(plan)
    scheduler.set_timesteps(other)
    assert scheduler.plan.nfe == len(scheduler.timesteps) == other
    if len(plan.times) > 3:  # with few steps, other grids have the same times
        assert scheduler.plan == expected
    scheduler.set_timesteps(nfe)
    assert scheduler.plan == plan


def test_budgets_that_there_is_no_plan_for() -> None:
    own = solvers.to_diffusers(solvers.plan("ddim", VP, times=[1.0, 0.7, 0.1]))
    with pytest.raises(ValueError, match=r"2 calls at times of its own: pass num_inference_steps=2, or .* plan of 50"):
        own.set_timesteps(50)
    with pytest.raises(solvers.BudgetError, match="heun cannot spend 6 calls"):
        solvers.to_diffusers(solvers.plan("heun", VP, 7)).set_timesteps(6)
    recorded = solvers.to_diffusers(solvers.plan("diffusers:DEISMultistepScheduler", VP, 6))
    recorded.set_timesteps(9)
    assert recorded.plan == solvers.plan("diffusers:DEISMultistepScheduler", VP, 9)


@pytest.mark.parametrize(("name", "k"), [("ddim", 3), ("dpmpp_2m", 4), ("heun", 4)])
def test_a_start_in_the_middle_is_the_method_on_the_rest_of_the_grid(name: str, k: int) -> None:
    plan, x = solvers.plan(name, VP, 9), start(VP, 4)
    scheduler = solvers.to_diffusers(plan)
    scheduler.set_begin_index(k)
    assert (scheduler.begin_index, scheduler.step_index) == (k, k)
    rest = plan.times[plan.times.index(call_times(plan)[k]) :]
    expected = solvers.sample(solvers.plan(name, VP, times=rest), denoiser(VP), x)
    torch.testing.assert_close(drive(scheduler, plan, x, range(k, 9)), expected, rtol=1e-10, atol=1e-10)
    scheduler.set_begin_index(0)
    torch.testing.assert_close(drive(scheduler, plan, x), solvers.sample(plan, denoiser(VP), x), rtol=1e-10, atol=1e-10)


def test_a_start_between_the_calls_of_one_step_is_an_error() -> None:
    scheduler = solvers.to_diffusers(solvers.plan("heun", VP, 9))
    for k in (3, 9):
        with pytest.raises(ValueError, match=f"heun cannot start at call {k} of its 9"):
            scheduler.set_begin_index(k)


def test_an_analytical_first_step_starts_from_noise_that_it_has_scaled() -> None:
    plan, x_T = solvers.plan("dpmpp_2m", VP, 5, afs=True), start(VP, 4)
    scheduler = solvers.to_diffusers(plan)
    x = drive(scheduler, plan, scheduler.init_noise_sigma * x_T)
    assert scheduler.init_noise_sigma != 1
    torch.testing.assert_close(x, solvers.sample(plan, denoiser(VP), x_T), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="ddim adds noise before its first call"):
        solvers.to_diffusers(solvers.plan("ddim", VP, 5, afs=True, eta=1.0))


def test_what_cannot_be_a_scheduler() -> None:
    with pytest.raises(ValueError, match="dpm_solver_12 is no plan"):
        solvers.to_diffusers(solvers.plan("dpm_solver_12", VP))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prediction_type='eps' is none of epsilon, sample"):
        solvers.to_diffusers(solvers.plan("ddim", VP, 5), "eps")
    with pytest.raises(ValueError, match="prediction_type='sample' is none of epsilon, v_prediction"):
        solvers.to_diffusers(solvers.plan("ddim", solvers.EDM(), 5), "sample")


def test_diffusers_is_not_imported_before_it_is_asked_for() -> None:
    code = "import sys, solvers; solvers.names(); sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
