"""Published students: their samplers against the schedulers they are published with, their opening, their refusals."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

import bench.checkpoints
import solvers
from bench import students
from bench.checkpoints import Checkpoint, Task, pipelines
from bench.checkpoints.prompts import Prompts
from bench.errors import UsageError
from bench.students import Student, open_student
from solvers.testing import mixture
from tests.bench import schedulers, tiny_text_pipelines

TRAINED = [(name, nfe) for name in students.names() for nfe in students.entry(name).sampler.trained_for]
PROMPTS = ("red cat", "photo of a blue cat")


def draws(shape: tuple[int, ...], count: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """What a generator seeded with 1 gives a scheduler that draws so often."""
    g = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=g, dtype=dtype) for _ in range(count)]


@pytest.mark.parametrize(("name", "nfe"), TRAINED, ids=lambda value: str(value))
def test_every_student_is_sampled_as_its_publishers_sample_it(name: str, nfe: int) -> None:
    sampler, schedule = students.entry(name).sampler, schedulers.schedule_of(name)
    denoiser = mixture(schedule)
    z = torch.randn(4, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theirs = schedulers.run(*schedulers.published(name, nfe), denoiser, z, seed=1)
    plan = sampler.plan(schedule, nfe)
    noise, before = draws((4, 12), plan.draws, z.dtype), denoiser.calls
    ours = solvers.sample(plan, denoiser, z * schedule.prior_std(plan.times[0]), lambda k: noise[k])
    torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=0, atol=1e-5)
    assert (before, denoiser.calls - before) == (nfe, nfe)


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny pipelines, and weights of students for them as they are published."""
    folder = tmp_path_factory.mktemp("students")
    for name, made in (("sd15", "stable_diffusion"), ("sdxl", "sdxl"), ("lcm", "lcm")):
        tiny_text_pipelines.save(made, folder / name)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        unet = tiny_text_pipelines.sdxl_unet()
        save_file(unet.state_dict(), folder / "unet.safetensors")
        layers = diffusers.UNet2DConditionModel.from_pretrained(folder / "sd15", subfolder="unet")
        layers.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
        diffusers.StableDiffusionPipeline.save_lora_weights(
            folder / "lora", unet_lora_layers=get_peft_model_state_dict(layers)
        )
    return folder


@cache
def on(there: Path, base: str) -> Checkpoint:
    return pipelines.load(there / base, {}, base)


def sampled(student: Student, nfe: int, z: Tensor) -> Tensor:
    task, cpu = Task(student.guide, prompts=Prompts("two", PROMPTS)), torch.device("cpu")
    student.checkpoint.check(task)
    plan, denoiser = student.plan(nfe), student.checkpoint.denoiser(task, cpu, torch.float32)
    noise, cond = draws(tuple(z.shape), plan.draws), student.checkpoint.conditions(task, 0, 0, len(z), cpu)
    with torch.no_grad():
        return solvers.sample(plan, denoiser, z, lambda k: noise[k], cond=cond)


def theirs(pipeline: Any, nfe: int, z: Tensor, guidance: float) -> Tensor:
    pipeline.set_progress_bar_config(disable=True)
    g = torch.Generator().manual_seed(1)
    latents: Tensor = pipeline(
        list(PROMPTS), num_inference_steps=nfe, guidance_scale=guidance, latents=z, generator=g, output_type="latent"
    ).images
    return latents


def with_lora(there: Path) -> Any:
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(there / "sd15")
    pipeline.load_lora_weights(there / "lora")
    pipeline.scheduler = diffusers.LCMScheduler.from_config(pipeline.scheduler.config)
    return pipeline


def of_its_own(there: Path) -> Any:
    return diffusers.LatentConsistencyModelPipeline.from_pretrained(there / "lcm")


def with_unet(there: Path, **config: Any) -> Any:
    pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(there / "sdxl", add_watermarker=False)
    pipeline.unet.load_state_dict(load_file(there / "unet.safetensors"))
    pipeline.scheduler = diffusers.EulerDiscreteScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing", **config
    )
    return pipeline


def with_data_prediction(there: Path) -> Any:
    return with_unet(there, prediction_type="sample")


OPENED: list[tuple[str, str, Callable[[Path], Any], int, float]] = [
    ("lcm_lora_sdv1_5(path='{}/lora', guidance=1.5)", "sd15", with_lora, 4, 1.5),
    ("lcm_dreamshaper_v7(path='{}/lcm')", "sd15", of_its_own, 3, 8.0),
    ("sdxl_lightning_4step(path='{}/unet.safetensors')", "sdxl", with_unet, 4, 0.0),
    ("sdxl_lightning_1step(path='{}/unet.safetensors')", "sdxl", with_data_prediction, 1, 0.0),
]


@pytest.mark.parametrize(("text", "base", "pipeline", "nfe", "guidance"), OPENED, ids=[o[0] for o in OPENED])
def test_an_opened_student_samples_as_the_pipeline_of_diffusers(
    there: Path, text: str, base: str, pipeline: Callable[[Path], Any], nfe: int, guidance: float
) -> None:
    opened = on(there, base)
    student = open_student(text.format(there), opened)
    z = torch.randn(2, *opened.shape, generator=torch.Generator().manual_seed(0))
    expected = theirs(pipeline(there), nfe, z, guidance)
    torch.testing.assert_close(sampled(student, nfe, z), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert student.checkpoint.digest != opened.digest


def test_a_lora_acts_as_strongly_as_asked(there: Path) -> None:
    base, z = on(there, "sd15"), torch.ones(2, 4, 8, 8)
    half, whole = (open_student(f"lcm_lora_sdv1_5(path='{there}/lora', lora_scale={s})", base) for s in (0.5, 1.0))
    assert half.checkpoint.digest != whole.checkpoint.digest
    assert not torch.allclose(sampled(half, 2, z), sampled(whole, 2, z))


def test_a_budget_that_it_was_not_trained_for_is_refused(there: Path) -> None:
    student = open_student(f"sdxl_lightning_4step(path='{there}/unet.safetensors')", on(there, "sdxl"))
    with pytest.raises(solvers.BudgetError, match=r"^sdxl_lightning_4step: no 8 calls: the student was trained for 4$"):
        student.plan(8)


REFUSED = [
    ("lcm_lora_sdv1_5(path='{}/lora')", "sdxl", "is a LoRA for a StableDiffusionPipeline, and sdxl is a StableDiffu"),
    ("dmd2_sdxl_4step(path='{}/unet.safetensors')", "sd15", "is a UNet for a StableDiffusionXLPipeline, and sd15 is"),
    ("lcm_lora_sdxl(path='{}/lora')", "sdxl", "lora: .*safetensors is no adapter of this StableDiffusionXLPipeline"),
    ("lcm_lora_sdv1_5(path='{}/none')", "sd15", "'lcm_lora_sdv1_5': there is nothing at path='.*/none'"),
    ("lcm_lora_sdv1_5(guidance=3)", "sd15", "guidance = 3: the student accepts 1 to 2"),
    ("tcd_sdxl_lora(guidance=2)", "sdxl", "guidance = 2: the student accepts 1 alone"),
    ("lcm_lora_sdv1_5(guidance=strong)", "sd15", "guidance='strong' is not a number"),
    ("sdxl_turbo(path='{}/lcm')", "sd15", "'sdxl_turbo' takes no guidance as an input, and these weights do the oppo"),
    ("lcm_dreamshaper_v7(path='{}/sd15')", "sd15", "is to take its guidance as an input, and these weights do the opp"),
    ("lcm_dreamshaper_v7(path='{}/lcm', resolution=128)", "sd15", "samples 4 x 16 x 16, and sd15 4 x 8 x 8: open one"),
]


@pytest.mark.parametrize(("text", "base", "message"), REFUSED, ids=[r[0] for r in REFUSED])
def test_what_does_not_fit_is_refused_in_one_line(there: Path, text: str, base: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as refusal:
        open_student(text.format(there), on(there, base))
    assert "\n" not in str(refusal.value)


def test_a_base_that_is_no_pipeline_is_refused() -> None:
    with pytest.raises(UsageError, match="is a LoRA for a StableDiffusionPipeline, and gmm is none"):
        open_student("lcm_lora_sdv1_5", bench.checkpoints.load("gmm"))


def test_weights_that_are_not_here_are_named_with_what_brings_them(
    there: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match="is not here: `fewstep pull lcm_lora_sdv1_5` brings 129 MiB under OpenRAIL"):
        open_student("lcm_lora_sdv1_5", on(there, "sd15"))


def test_an_unknown_student_or_option_is_named_with_the_nearest(there: Path) -> None:
    with pytest.raises(solvers.UnknownNameError, match="unknown student 'sdxl_turb': did you mean 'sdxl_turbo'"):
        students.entry("sdxl_turb")
    with pytest.raises(solvers.UnknownNameError, match="option of lcm_lora_sdv1_5 'guidence': did you mean 'guidance'"):
        open_student("lcm_lora_sdv1_5(guidence=2)", on(there, "sd15"))


OWN = """
students:
  mine:
    about: a student of our own
    source: {hub: us/mine, file: weights.safetensors, licence: ours}
    kind: lora
    base: StableDiffusionPipeline
    sampler: {sampler}
"""


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ("{solver: lcm}", "needs a grid with budgets, or else labels, or else times"),
        ("{solver: lcm, grid: lcm, budgets: [4], guidance: 9}", "guidance = 9 lies outside"),
        ("{grid: lcm, budgets: [4]}", "solver"),
        ("{solver: lcm, grid: lcm, budgets: [4], eta: 1}", "no 'eta'"),
        ("[lcm]", "not a few-step sampler"),
    ],
)
def test_a_student_of_ones_own_written_wrongly_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str, message: str
) -> None:
    (tmp_path / "mine.yaml").write_text(OWN.replace("{sampler}", "{solver: lcm, grid: lcm, budgets: [4]}"))
    monkeypatch.setenv("FEWSTEP_MANIFEST", str(tmp_path / "mine.yaml"))
    assert students.is_student("mine")
    assert students.entry("mine").sampler.trained_for == (4,)
    (tmp_path / "mine.yaml").write_text(OWN.replace("{sampler}", sampler) + "# so that it changed")
    with pytest.raises(UsageError, match=f"manifest entry 'mine': sampler: .*{message}"):
        students.entry("mine")
