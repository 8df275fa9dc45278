"""Pipelines without prompts: the whole trajectory, and the images, are those of diffusers' own pipelines."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

import solvers
from bench.checkpoints import Checkpoint, Guide, Task
from bench.checkpoints.pipelines import load
from solvers.diffusers_record import Float64
from solvers.plan import Combine, Instruction
from tests.bench import tiny_pipelines as tiny

SEED, STEPS = 3, 5
CPU = torch.device("cpu")
Folders = Callable[..., Path]


def theirs(path: Path, exact: bool = False, **call: Any) -> tuple[list[Tensor], Tensor]:
    """The states after each step of diffusers' own pipeline, and its images (B, C, H, W) in [0, 1].

    The scheduler's numbers are float32 as they come or, where that is too coarse, `exact`: of sigma at the first label
    only four digits are left.
    """
    pipeline = diffusers.DiffusionPipeline.from_pretrained(path)
    if exact:
        with Float64():
            pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    states, step = [], pipeline.scheduler.step

    def recorded(*args: Any, **kwargs: Any) -> Any:
        out = step(*args, **kwargs)
        states.append(out[0] if isinstance(out, tuple) else out.prev_sample)
        return out

    pipeline.scheduler.step = recorded
    images = pipeline(generator=torch.Generator().manual_seed(SEED), output_type="np", **call).images
    return states, torch.from_numpy(images).permute(0, 3, 1, 2)


def draws(shape: tuple[int, ...], count: int) -> list[Tensor]:
    """What a pipeline draws: x_T, then noise step by step."""
    generator = torch.Generator().manual_seed(SEED)
    return [randn_tensor(shape, generator=generator) for _ in range(count)]


def ours(
    checkpoint: Checkpoint, plan: Any, batch: int, scale: float = 1.0, cond: Mapping[str, Tensor] | None = None
) -> tuple[list[Tensor], Tensor]:
    """The same of a checkpoint of ours."""
    x_T, *noise = draws((batch, *checkpoint.shape), 1 + plan.draws)
    states = []

    def keep(instruction: Instruction, x: Tensor) -> None:
        if isinstance(instruction, Combine):
            states.append(x.clone())

    denoiser = checkpoint.denoiser(Task(Guide(scale)), CPU, torch.float32, plan.times)
    x_T = x_T * checkpoint.schedule.prior_std(plan.times[0])
    x = solvers.sample(plan, denoiser, x_T, noise.__getitem__, keep, cond)
    return states, ((checkpoint.decode(x) if checkpoint.decode else x) / 2 + 0.5).clamp(0, 1)


def assert_same(a: tuple[list[Tensor], Tensor], b: tuple[list[Tensor], Tensor]) -> None:
    """States within 1e-5 of their size, images within 1e-5 of theirs."""
    assert len(a[0]) == len(b[0]) > 0
    for x, y in zip(a[0], b[0], strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-5 * float(y.abs().max()))
    torch.testing.assert_close(a[1], b[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [tiny.ddpm, tiny.flat])
def test_ddpm_with_the_noise_of_its_pipeline(make: tiny.Make, folders: Folders) -> None:
    checkpoint = load(folders(make), {}, "tiny")
    options = {"clip_sample": False, "variance_type": "fixed_large"}
    plan = solvers.plan("diffusers:DDPMScheduler", checkpoint.schedule, STEPS, **options)
    assert plan.draws > 0
    assert (checkpoint.shape, checkpoint.classes) == ((3, 16, 16), ())
    assert_same(ours(checkpoint, plan, 2), theirs(folders(make), batch_size=2, num_inference_steps=STEPS))


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(("betas", "spacing"), [("linear", "leading"), ("squaredcos_cap_v2", "trailing")])
def test_ddim_of_any_prediction(prediction: str, betas: str, spacing: str, folders: Folders) -> None:
    own = {"prediction_type": prediction, "timestep_spacing": spacing}
    path = folders(tiny.ddim, beta_schedule=betas, **own)
    checkpoint = load(path, {}, "tiny")
    reference = theirs(path, exact=True, batch_size=2, num_inference_steps=STEPS)
    plan = solvers.plan("diffusers:DDIMScheduler", checkpoint.schedule, STEPS, clip_sample=False, **own)
    assert_same(ours(checkpoint, plan, 2), reference)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim_by_our_own_solver(spacing: str, folders: Folders) -> None:
    path = folders(tiny.ddim, timestep_spacing=spacing)
    checkpoint = load(path, {}, "tiny")
    plan = solvers.plan("ddim", checkpoint.schedule, STEPS, grid=spacing)
    assert_same(ours(checkpoint, plan, 2), theirs(path, batch_size=2, num_inference_steps=STEPS))


def test_a_model_alone_is_told_its_betas(folders: Folders) -> None:
    checkpoint = load(folders(tiny.alone), {"betas": "linear"}, "tiny")
    whole = load(folders(tiny.ddpm), {}, "tiny")
    assert checkpoint.schedule == whole.schedule
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([0.5, 1.0])
    model = diffusers.UNet2DModel.from_pretrained(folders(tiny.alone))
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.network(x, t), model(x, torch.tensor([499, 999])).sample)


@solvers.solver("multistep_consistency", order=1, predicts="data", grids={})
def multistep_consistency(p: solvers.Tracer, grid: Any) -> None:
    """To the data, and back to each noise level but the last by fresh noise.  Song et al. 2023, Algorithm 1."""
    x, least = p.start(), grid.schedule.sigma_min
    for i in range(grid.steps):
        D = p.model(x, i)
        more = grid.sigma[i + 1] ** 2 - least**2
        x = p.state(D + more**0.5 * p.noise() if more > 0 else D)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("timesteps", [[0], [22, 0], [33, 17, 0]])
def test_consistency_models_in_one_step_and_several(clip: bool, timesteps: list[int], folders: Folders) -> None:
    path, y = folders(tiny.consistency, clip=clip), [1, 7]
    checkpoint = load(path, {}, "tiny")
    levels = diffusers.CMStochasticIterativeScheduler()._convert_to_karras(np.array(timesteps[::-1]) / 39)
    assert levels[0] == 80
    options = {"thresholding": "static"} if clip else {}
    plan = multistep_consistency.build(checkpoint.schedule, times=[*levels, 0.002], options=options)
    reference = theirs(path, batch_size=2, class_labels=y, num_inference_steps=None, timesteps=timesteps)
    assert_same(ours(checkpoint, plan, 2, cond={"y": torch.tensor(y)}), reference)


@pytest.mark.parametrize("make", [tiny.dit, tiny.old_dit])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_dit_guided_and_not(make: tiny.Make, scale: float, folders: Folders) -> None:
    checkpoint, labels = load(folders(make), {}, "tiny"), [207, 999]
    assert (checkpoint.shape, checkpoint.image_shape, len(checkpoint.classes)) == ((4, 8, 8), (3, 32, 32), 1000)
    plan = solvers.plan("diffusers:DDIMScheduler", checkpoint.schedule, STEPS, clip_sample=False)
    states, images = theirs(folders(make), class_labels=labels, guidance_scale=scale, num_inference_steps=STEPS)
    found = ours(checkpoint, plan, 2, scale, {"y": torch.tensor(labels)})
    assert_same(found, ([x[:2] for x in states], images))  # beside the guided two the pipeline carries two copies


def test_latent_diffusion_and_its_code_book(folders: Folders) -> None:
    checkpoint = load(folders(tiny.ldm), {}, "tiny")
    assert (checkpoint.shape, checkpoint.image_shape) == ((3, 8, 8), (3, 16, 16))
    plan = solvers.plan("diffusers:DDIMScheduler", checkpoint.schedule, STEPS, clip_sample=False)
    reference = theirs(folders(tiny.ldm), batch_size=2, num_inference_steps=STEPS)
    assert_same(ours(checkpoint, plan, 2), reference)


@pytest.mark.parametrize("scale", [1.0, 6.0])
def test_the_first_latent_diffusion_with_prompts(scale: float, folders: Folders) -> None:
    checkpoint, prompts = load(folders(tiny.ldm_text), {}, "tiny"), ["a red cat", "a blue cat"]
    plan = solvers.plan("diffusers:DDIMScheduler", checkpoint.schedule, STEPS, clip_sample=False)
    reference = theirs(folders(tiny.ldm_text), prompt=prompts, guidance_scale=scale, num_inference_steps=STEPS)
    found = ours(checkpoint, plan, 2, scale, checkpoint.text.encode(prompts, CPU))
    assert_same(found, reference)
    assert not torch.equal(found[1][0], found[1][1])
