"""What a scheduler's config becomes: the schedule that diffusers' own scheduler has, and what the network predicts."""

from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import solvers
from bench.checkpoints.pipelines.schedule import LEAST, labels, read_schedule
from bench.errors import UsageError
from solvers.diffusers_record import Float64
from solvers.grid import make_grid

CONFIGS = [
    ("DDPMScheduler", {}),
    ("DDPMScheduler", {"beta_schedule": "linear", "beta_start": 0.0015, "beta_end": 0.0155}),
    ("DDPMScheduler", {"beta_schedule": "sigmoid"}),
    ("DDIMScheduler", {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}),
    ("PNDMScheduler", {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}),
    ("EulerDiscreteScheduler", {"trained_betas": np.linspace(1e-3, 0.5, 50).tolist(), "num_train_timesteps": 50}),
    ("DPMSolverMultistepScheduler", {"num_train_timesteps": 250, "prediction_type": "sample"}),
    ("LCMScheduler", {}),  # whose own defaults are Stable Diffusion's betas
]


@pytest.mark.parametrize(("class_name", "config"), CONFIGS)
def test_alphas_are_those_of_the_scheduler(class_name: str, config: dict[str, Any]) -> None:
    with Float64():
        scheduler = getattr(diffusers, class_name)(**config)
    schedule, predicts = read_schedule({"_class_name": class_name, **config}, "here")
    N = scheduler.config.num_train_timesteps
    alpha_bar = schedule.alpha((np.arange(N) + 1) / N) ** 2
    np.testing.assert_allclose(alpha_bar, scheduler.alphas_cumprod.numpy(), rtol=1e-10)
    stated = config.get("prediction_type", "epsilon")
    assert predicts == {"epsilon": "noise", "sample": "data", "v_prediction": "v"}[stated]


def test_betas_without_a_last_signal_keep_as_little_as_diffusers_leaves() -> None:
    config = {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    schedule, predicts = read_schedule({"_class_name": "DDIMScheduler", **config}, "here")
    with Float64():
        theirs = diffusers.EulerDiscreteScheduler(**config).alphas_cumprod.numpy()
    assert theirs[-1] == LEAST
    np.testing.assert_allclose(schedule.alpha((np.arange(1000) + 1) / 1000) ** 2, theirs, rtol=1e-8)
    assert predicts == "v"


def test_a_flow_is_shifted_as_its_scheduler_shifts() -> None:
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    assert read_schedule(config, "here") == (solvers.RectifiedFlow(3.0), "velocity")
    flow = {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "flow_shift": 2.0}
    assert read_schedule(flow, "here")[0] == solvers.RectifiedFlow(2.0)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("tokens", [256, 1024, 4096])
def test_a_flow_that_shifts_by_resolution(kind: str, tokens: int) -> None:
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    config = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "time_shift_type": kind}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**config)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 8, 8), mu=calculate_shift(tokens))
    schedule, _ = read_schedule({"_class_name": "FlowMatchEulerDiscreteScheduler", **config}, "here", tokens=tokens)
    times = make_grid("shifted", schedule, 8).times
    np.testing.assert_allclose(times, scheduler.sigmas.numpy(), atol=2e-7)


def test_a_consistency_scheduler_says_between_which_noise_levels() -> None:
    config = {"_class_name": "CMStochasticIterativeScheduler", "sigma_min": 0.01, "sigma_max": 40.0}
    assert read_schedule(config, "here") == (solvers.EDM(0.01, 40.0), "data")


def test_what_is_stated_may_be_put_right() -> None:
    config = {"_class_name": "DDIMScheduler", "prediction_type": "epsilon"}
    assert read_schedule(config, "here", "v_prediction")[1] == "v"


@pytest.mark.parametrize(
    ("config", "prediction", "why"),
    [
        ({"_class_name": "DDIMScheduler", "prediction_type": "score"}, None, "prediction type 'score' is none of"),
        ({"_class_name": "DDIMScheduler"}, "noise", "prediction type 'noise' is none of epsilon, sample, v_prediction"),
        ({"_class_name": "CMStochasticIterativeScheduler"}, "epsilon", "'epsilon', and a consistency model predict"),
        ({"_class_name": "DDIMScheduler", "beta_schedule": "cubic"}, None, "DDIMScheduler cannot be made from it: c"),
        ({"_class_name": "DDIMScheduler", "trained_betas": [0.1, 1.5]}, None, "betas must lie between 0 and 1"),
        ({"_class_name": "DDIMScheduler", "trained_betas": "many"}, None, "DDIMScheduler cannot be made from it"),
        ({"_class_name": "EDMEulerScheduler"}, None, "EDMEulerScheduler has no betas, and it is no flow"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, None, "noise levels are known here"),
        ({"_class_name": "AScheduler"}, None, "AScheduler is no scheduler whose noise levels are known here"),
        ({"_class_name": "DDPMPipeline"}, None, "DDPMPipeline is no scheduler"),
        ({}, None, "None is no scheduler"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 0}, None, "shift must be positive, not 0"),
        ({"_class_name": "CMStochasticIterativeScheduler", "sigma_min": "low"}, None, "could not convert string"),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}, None,
            "its flow shifts with the resolution",
        ),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused(config: dict[str, Any], prediction: str | None, why: str) -> None:
    with pytest.raises(UsageError, match=r"^here: ") as caught:
        read_schedule(config, "here", prediction)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_are_whole_for_every_training_time_in_float32() -> None:
    for N in (250, 1000, 4000):
        t = ((np.arange(N) + 1) / N).astype(np.float32)
        assert torch.equal(labels(torch.from_numpy(t), N), torch.arange(N, dtype=torch.float32))
    slope = torch.func.jvp(lambda t: labels(t, 1000), (torch.tensor([0.5, 0.50033]),), (torch.ones(2),))[1]
    assert torch.equal(slope, torch.full((2,), 1000.0))  # snapping is no step
    between = labels(torch.tensor([0.5005, 0.73215]), 1000)
    torch.testing.assert_close(between, torch.tensor([499.5, 731.15]), rtol=0, atol=1e-4)
