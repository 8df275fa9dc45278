"""How the publishers of students sample them with diffusers: schedulers made of the configs that their bases ship."""

import re
from typing import Any

import diffusers
import torch
from torch import Tensor

from solvers.model import Denoiser
from solvers.schedule import EDM, Schedule, VPDiscrete

SD = {  # scheduler_config.json of Stable Diffusion 1.5
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None, "clip_sample": False,
}  # fmt: skip
SDXL = SD | {  # and of Stable Diffusion XL
    "interpolation_type": "linear", "prediction_type": "epsilon", "sample_max_value": 1.0,
    "timestep_spacing": "leading", "use_karras_sigmas": False,
}  # fmt: skip
CM = {"num_train_timesteps": 40, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "clip_denoised": True}
TRAILING = {"timestep_spacing": "trailing"}

# name -> scheduler, its config, what the call's `timesteps` are (by budget) and what `step` is told
PUBLISHED: dict[str, tuple[str, dict[str, Any], dict[int, list[int]], dict[str, Any]]] = {
    "cd_imagenet64": ("CMStochasticIterativeScheduler", CM, {2: [22, 0]}, {}),
    "cd_bedroom256": ("CMStochasticIterativeScheduler", CM, {2: [17, 0]}, {}),
    "lcm_dreamshaper|slam|lcm_lora_sdv1_5": ("LCMScheduler", SD, {}, {}),
    "lcm_sdxl|lcm_lora_sdxl": ("LCMScheduler", SDXL, {}, {}),
    "tcd_": ("TCDScheduler", SDXL, {}, {"eta": 0.3}),
    "dmd2_": ("LCMScheduler", SDXL, {4: [999, 749, 499, 249], 1: [399]}, {}),
    "hyper_.*_1step_lora": ("TCDScheduler", SDXL, {}, {"eta": 1.0}),
    "hyper_sdxl_1step$": ("LCMScheduler", SDXL, {1: [800]}, {}),
    "hyper_sdxl_[248]step": ("DDIMScheduler", SDXL | TRAILING, {}, {}),
    "hyper_sd15_[248]step|pcm_sd15": ("DDIMScheduler", SD | TRAILING, {}, {}),
    "pcm_sdxl": ("DDIMScheduler", SDXL | TRAILING, {}, {}),
    "sdxl_lightning_1step$": ("EulerDiscreteScheduler", SDXL | TRAILING | {"prediction_type": "sample"}, {}, {}),
    "sdxl_lightning_[248]": ("EulerDiscreteScheduler", SDXL | TRAILING, {}, {}),
    "sdxl_turbo": ("EulerAncestralDiscreteScheduler", SDXL | TRAILING, {}, {}),
}


def published(name: str, nfe: int) -> tuple[Any, dict[str, Any]]:
    """The scheduler that a student's publishers sample it with, ready for so many steps, and what its step is told."""
    ((scheduler, config, timesteps, told),) = [v for pattern, v in PUBLISHED.items() if re.match(pattern, name)]
    made = getattr(diffusers, scheduler).from_config(config)
    if nfe in timesteps:
        made.set_timesteps(timesteps=timesteps[nfe])
    else:
        made.set_timesteps(nfe)
    return made, told


def schedule_of(name: str) -> Schedule:
    return EDM() if name.startswith("cd_") else VPDiscrete.scaled_linear()


def run(scheduler: Any, told: dict[str, Any], denoiser: Denoiser, z: Tensor, seed: int) -> Tensor:
    """What a pipeline makes of noise z, its own draws being those of a generator with this seed."""
    generator, x = torch.Generator().manual_seed(seed), z * scheduler.init_noise_sigma
    draws = {} if isinstance(scheduler, diffusers.DDIMScheduler) else {"generator": generator}
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t)
        x = scheduler.step(_output(scheduler, denoiser, x, scaled, t), t, x, **told, **draws).prev_sample
    return x


def _output(scheduler: Any, denoiser: Denoiser, x: Tensor, scaled: Tensor, t: Tensor) -> Tensor:
    """The network's, at a label; a consistency model's is what the scheduler's boundary condition makes D of."""
    if isinstance(denoiser.schedule, EDM):
        sigma = scheduler.sigmas[scheduler.step_index]
        c_skip, c_out = scheduler.get_scalings_for_boundary_condition(sigma)
        return (denoiser(x, float(sigma), "data") - c_skip * x) / c_out
    kind = {"epsilon": "noise", "sample": "data"}[scheduler.config.prediction_type]
    return denoiser(scaled, (int(t) + 1) / 1000, kind)
