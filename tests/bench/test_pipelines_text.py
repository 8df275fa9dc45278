"""Text-to-image pipelines: whole trajectories against diffusers' own pipelines, and what is refused."""

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import solvers
from bench.checkpoints.base import Checkpoint, Guide, Task
from bench.checkpoints.pipelines import load, vae
from bench.checkpoints.pipelines.files import quiet
from bench.checkpoints.prompts import Prompts
from bench.errors import UsageError
from tests.bench import tiny_text_pipelines
from tests.bench.tiny_text_pipelines import BETAS

CPU = torch.device("cpu")
PROMPTS = ("a red cat", "photo of a blue cat, " * 30)  # the second is longer than CLIP reads
Make = Callable[[str], Path]


def opened(folder: Path, **options: solvers.Option) -> Checkpoint:
    return load(folder, {"resolution": 64, **options}, "tiny")


def sampled(
    checkpoint: Checkpoint, plan: solvers.Plan, scale: float, negative: str = "", noise: Any = None
) -> tuple[Tensor, Tensor]:
    """x_T and the samples of the two prompts."""
    task = Task(Guide(scale), prompts=Prompts("two", PROMPTS, negative))
    x_T = checkpoint.latents(0, 0, 2, plan.times[0]).float()
    denoiser = checkpoint.denoiser(task, CPU, torch.float32, plan.times)
    cond = checkpoint.conditions(task, 0, 0, 2, CPU)
    with torch.no_grad():
        return x_T, solvers.sample(plan, denoiser, x_T, noise, cond=cond)


def pipeline_of(folder: Path, scheduler: Any = None) -> Any:
    with quiet():
        without = {"text_encoder_3": None, "tokenizer_3": None} if "without_t5" in folder.name else {}
        pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, **without)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = scheduler or pipeline.scheduler
    return pipeline


def theirs(pipeline: Any, x_T: Tensor, steps: int, **given: Any) -> tuple[Tensor, Tensor]:
    """The latents and the images (in [-1, 1]) that diffusers' pipeline makes of the two prompts."""
    flux = isinstance(pipeline, diffusers.FluxPipeline)
    latents = pipeline._pack_latents(x_T, *x_T.shape) if flux else x_T
    given |= {"latents": latents, "num_inference_steps": steps, "height": 64, "width": 64}
    with quiet():
        x = pipeline(list(PROMPTS), output_type="latent", **given).images
        images = pipeline(list(PROMPTS), output_type="np", **given).images
    x = pipeline._unpack_latents(x, 64, 64, 8) if flux else x
    return x, torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1


@dataclass(frozen=True)
class Case:
    """A pipeline by a solver, as `scheduler` does it with these arguments of the pipeline."""

    pipeline: str
    solver: str
    scheduler: str | None
    scale: float
    arguments: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)  # of the scheduler, as of the solver
    negative: str = ""

    def __str__(self) -> str:
        return f"{self.pipeline}-{self.solver.split(':')[-1]}-{self.scale:g}-{self.negative or 'empty'}"


DDIM = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
GUIDED, UGLY = {"guidance_scale": 7.5, "negative_prompt": ["", ""]}, {"negative_prompt": ["ugly"] * 2}
CASES = [
    Case("stable_diffusion", "diffusers:DDIMScheduler", "DDIMScheduler", 7.5, GUIDED, DDIM),
    Case("stable_diffusion", "diffusers:DPMSolverMultistepScheduler", "DPMSolverMultistepScheduler", 7.5, GUIDED),
    Case("stable_diffusion", "diffusers:DDIMScheduler", "DDIMScheduler", 7.5, GUIDED | UGLY, DDIM, "ugly"),
    Case("stable_diffusion", "diffusers:DDIMScheduler", "DDIMScheduler", 1.0, {"guidance_scale": 1.0}, DDIM),
    Case("stable_diffusion_2", "diffusers:DDIMScheduler", "DDIMScheduler", 7.5, GUIDED, DDIM),
    Case("stable_diffusion_2", "diffusers:DPMSolverMultistepScheduler", "DPMSolverMultistepScheduler", 7.5, GUIDED),
    Case("sdxl", "diffusers:DDIMScheduler", "DDIMScheduler", 5.0, {"guidance_scale": 5.0}, DDIM),
    Case("sdxl", "diffusers:DDIMScheduler", "DDIMScheduler", 5.0, UGLY | {"guidance_scale": 5.0}, DDIM, "ugly"),
    Case("sd3", "diffusers:FlowMatchEulerDiscreteScheduler", None, 4.0, {"guidance_scale": 4.0}),
    Case("sd3_without_t5", "diffusers:FlowMatchEulerDiscreteScheduler", None, 4.0, UGLY | {"guidance_scale": 4.0},
         negative="ugly"),
    Case("flux", "flow_euler", None, 3.5, {"guidance_scale": 3.5}),
    Case("flux_schnell", "flow_euler", None, 1.0, {"max_sequence_length": 256}),
    Case("flux_schnell", "flow_euler", None, 2.0,
         UGLY | {"max_sequence_length": 256, "true_cfg_scale": 2.0}, negative="ugly"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_samples_are_those_of_the_pipeline_itself(case: Case, text_pipeline: Make) -> None:
    folder = text_pipeline(case.pipeline)
    checkpoint, steps = opened(folder), 4
    plan = solvers.plan(case.solver, checkpoint.schedule, steps, **case.options)
    x_T, x = sampled(checkpoint, plan, case.scale, case.negative)
    stated = {"prediction_type": "v_prediction"} if case.pipeline == "stable_diffusion_2" else {}
    made = case.scheduler and getattr(diffusers, case.scheduler)(**BETAS | case.options | stated)
    expected, images = theirs(pipeline_of(folder, made), x_T, steps, **case.arguments)
    assert (x - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))
    assert checkpoint.decode is not None
    assert (checkpoint.decode(expected).clip(-1, 1) - images).abs().max() < 1e-5
    assert checkpoint.shape == x.shape[1:]
    assert checkpoint.image_shape == images.shape[1:]


def test_a_latent_consistency_model_is_told_the_scale_of_guidance(text_pipeline: Make) -> None:
    checkpoint = opened(text_pipeline("lcm"))
    assert checkpoint.scale_as_input
    plan = solvers.plan("diffusers:LCMScheduler", checkpoint.schedule, 4)

    def draws() -> list[Tensor]:
        generator = torch.Generator().manual_seed(3)
        return [torch.randn(2, 4, 8, 8, generator=generator) for _ in range(3)]

    pipeline = pipeline_of(text_pipeline("lcm"))
    samples = {}
    for scale in (1.0, 8.0):
        x_T, samples[scale] = sampled(checkpoint, plan, scale, noise=lambda k: draws()[k])
        generator = torch.Generator().manual_seed(3)
        given = {"guidance_scale": scale, "latents": x_T, "num_inference_steps": 4, "generator": generator}
        with quiet():
            expected = pipeline(list(PROMPTS), output_type="latent", **given).images
        assert (samples[scale] - expected).abs().max() < 1e-5 * float(expected.abs().max())
    assert (samples[1.0] - samples[8.0]).abs().max() > 1e-2  # the scale matters


@pytest.mark.parametrize("name", tiny_text_pipelines.MAKERS)
def test_prompts_reach_the_network_and_its_precision_is_its_own_affair(name: str, text_pipeline: Make) -> None:
    checkpoint = opened(text_pipeline(name))
    assert checkpoint.text is not None
    t = torch.full((2,), 0.5)
    x = checkpoint.latents(0, 0, 1, 1.0).float().expand(2, *checkpoint.shape)
    w = {"w": torch.full((2,), 3.5)} if checkpoint.scale_as_input else {}
    cond = checkpoint.text.encode(["red", "blue"], CPU)
    assert all(len(rows) == 2 and rows.dtype == torch.float32 for rows in cond.values())
    with torch.no_grad():
        out = checkpoint.network(x, t, **cond, **w)
        assert (out[0] - out[1]).abs().max() > 1e-4  # the same state and time, another prompt
        double = checkpoint.network.double()(x, t, **cond, **w)
        half = checkpoint.network.to(torch.bfloat16)(x, t, **cond, **w)
    assert double.dtype == half.dtype == torch.float32
    assert (double - out).abs().max() < 1e-5
    assert 0 < (half - out).abs().max() < 0.1 * out.abs().max()


def test_each_prompt_has_a_row_and_the_empty_one_of_xl_is_zero(text_pipeline: Make) -> None:
    text = opened(text_pipeline("sdxl")).text
    assert text is not None
    rows = text.encode(["red", "", "blue", "red"], CPU)
    alone = text.encode(["blue"], CPU)
    for key in ("prompt", "pooled"):
        assert torch.equal(rows[key][0], rows[key][3])
        assert not rows[key][1].any()
        assert rows[key][0].any()
        assert (rows[key][2] - alone[key][0]).abs().max() < 1e-6
    assert rows["size"].tolist() == [[64, 64, 0, 0, 64, 64]] * 4


def test_xl_without_forced_zeros_encodes_the_empty_prompt(text_pipeline: Make, tmp_path: Path) -> None:
    folder = copied(text_pipeline("sdxl"), tmp_path)
    change(folder / "model_index.json", force_zeros_for_empty_prompt=False)
    checkpoint = opened(folder)
    assert checkpoint.text is not None
    assert checkpoint.text.encode([""], CPU)["prompt"].any()
    assert checkpoint.digest != opened(text_pipeline("sdxl")).digest


def test_images_are_decoded_in_parts_and_in_single_precision(
    text_pipeline: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = opened(text_pipeline("sdxl")).decode
    assert decode is not None
    x = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0)).half()
    whole = decode(x)
    assert whole.dtype == torch.float32
    assert torch.equal(whole, decode(x.float()))
    seen: list[int] = []
    decode.vae.post_quant_conv.register_forward_hook(lambda _, __, z: seen.append(len(z)))  # type: ignore[attr-defined]
    monkeypatch.setattr(vae, "PIXELS", 2 * 64 * 64)
    assert (decode(x) - whole).abs().max() < 1e-5
    assert seen == [2, 2, 1]


def test_latents_are_normalised_by_channel_where_the_autoencoder_says_so(text_pipeline: Make, tmp_path: Path) -> None:
    folder = copied(text_pipeline("sdxl"), tmp_path)
    mean, std = [-1.6, 1.1, 0.3, -0.2], [8.4, 4.7, 5.3, 6.7]
    change(folder / "vae" / "config.json", latents_mean=mean, latents_std=std, scaling_factor=0.5)
    checkpoint = opened(folder)
    assert checkpoint.decode is not None
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    plan = solvers.plan("ddim", checkpoint.schedule, 1)
    _, images = theirs(pipeline_of(folder, solvers.to_diffusers(plan)), x, 1, guidance_scale=1.0)
    _, sample = sampled_from(checkpoint, plan, x)
    assert (checkpoint.decode(sample).clip(-1, 1) - images).abs().max() < 1e-5


def sampled_from(checkpoint: Checkpoint, plan: solvers.Plan, x_T: Tensor) -> tuple[Tensor, Tensor]:
    task = Task(prompts=Prompts("two", PROMPTS))
    denoiser = checkpoint.denoiser(task, CPU, torch.float32, plan.times)
    with torch.no_grad():
        return x_T, solvers.sample(plan, denoiser, x_T, cond=checkpoint.conditions(task, 0, 0, 2, CPU))


def test_work_apart_is_encoding_and_decoding(text_pipeline: Make) -> None:
    checkpoint = opened(text_pipeline("stable_diffusion"))
    assert set(checkpoint.apart) == {"encode text", "decode"}
    images = checkpoint.apart["decode"](CPU, 3)()
    assert isinstance(images, Tensor)
    assert images.shape == (3, 3, 64, 64)
    encoded = checkpoint.apart["encode text"](CPU, 3)()
    assert isinstance(encoded, dict)
    assert encoded["prompt"].shape == (3, 77, 32)
    assert len(encoded["prompt"].flatten(1).unique(dim=0)) == 3  # none is spared


def test_the_resolution_decides_the_shape_the_size_that_xl_is_told_and_how_flux_is_shifted(text_pipeline: Make) -> None:
    xl = opened(text_pipeline("sdxl"), resolution=96)
    assert (xl.shape, xl.image_shape) == ((4, 12, 12), (3, 96, 96))
    assert xl.text is not None
    assert xl.text.encode(["red"], CPU)["size"].tolist() == [[96, 96, 0, 0, 96, 96]]
    small, large = (opened(text_pipeline("flux"), resolution=r) for r in (64, 512))
    assert isinstance(large.schedule, solvers.RectifiedFlow)
    assert isinstance(small.schedule, solvers.RectifiedFlow)
    mu = 0.5 + (1.15 - 0.5) * (32 * 32 - 256) / (4096 - 256)
    assert large.schedule.shift == pytest.approx(2.718281828459045**mu)
    assert small.schedule.shift < large.schedule.shift
    assert small.digest != large.digest
    assert load(text_pipeline("flux"), {}, "flux").shape == (16, 128, 128)


def test_the_digest_is_of_contents_alone(text_pipeline: Make, tmp_path: Path) -> None:
    here = text_pipeline("stable_diffusion")
    digest = opened(here).digest
    assert load(copied(here, tmp_path), {}, "elsewhere").digest == digest
    assert opened(here, prediction="v_prediction").digest != digest
    assert opened(here, resolution=128).digest != digest
    other = tmp_path / "stable_diffusion" / "text_encoder" / "model.safetensors"
    save_file({k: v + 1e-3 for k, v in load_file(other).items()}, other, {"format": "pt"})
    assert opened(other.parent.parent).digest != digest


def test_a_prediction_type_may_be_stated(text_pipeline: Make) -> None:
    checkpoint = opened(text_pipeline("stable_diffusion"), prediction="v_prediction")
    assert (opened(text_pipeline("stable_diffusion")).predicts, checkpoint.predicts) == ("noise", "v")
    assert checkpoint.reopen is not None
    again = checkpoint.reopen({"resolution": 128})
    assert (again.predicts, again.shape) == ("v", (4, 16, 16))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 100}, "resolution=100 is no multiple of 8"),
        ({"resolution": 0}, "resolution=0 is no multiple of 8"),
        ({"prediction": "noise"}, "prediction type 'noise' is none of epsilon"),
        ({"resolutoin": 64}, "resolution"),
        ({"variant": "fp16"}, "variant 'fp16'"),
        ({"unet": "nowhere"}, "unet: nowhere is not there"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: dict[str, solvers.Option], message: str, text_pipeline: Make
) -> None:
    with pytest.raises((UsageError, solvers.UnknownNameError), match=message) as refused:
        opened(text_pipeline("stable_diffusion"), **options)
    assert "\n" not in str(refused.value)


def test_sd3_takes_no_more_than_its_positions_and_no_unet(text_pipeline: Make) -> None:
    assert opened(text_pipeline("sd3"), resolution=256).shape == (16, 32, 32)
    with pytest.raises(UsageError, match="resolution=272 is no multiple of 16 pixels, 256 at most"):
        opened(text_pipeline("sd3"), resolution=272)
    with pytest.raises(solvers.UnknownNameError):
        opened(text_pipeline("sd3"), unet="x")


@pytest.mark.parametrize("missing", ["vae", "unet", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_component_is_named(missing: str, text_pipeline: Make, tmp_path: Path) -> None:
    folder = copied(text_pipeline("stable_diffusion"), tmp_path)
    shutil.rmtree(folder / missing)
    with pytest.raises(UsageError, match=missing) as refused:
        opened(folder)
    assert "\n" not in str(refused.value)


class Hostile:
    def __reduce__(self) -> Any:
        return print, ("executed",)


def test_weights_that_would_import_something_are_refused(
    text_pipeline: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(text_pipeline("stable_diffusion"), tmp_path)
    for part, file in (("text_encoder", "pytorch_model.bin"), ("unet", "diffusion_pytorch_model.bin")):
        for path in (folder / part).glob("*.safetensors"):
            path.unlink()
        with (folder / part / file).open("wb") as out:
            pickle.dump(Hostile(), out, protocol=2)
        with pytest.raises(UsageError, match=rf"{file} is refused: it asks to import \S*print") as refused:
            opened(folder)
        assert "\n" not in str(refused.value)
        shutil.copytree(text_pipeline("stable_diffusion") / part, folder / part, dirs_exist_ok=True)
        (folder / part / file).unlink()
    assert "executed" not in capsys.readouterr().out
    assert opened(folder).digest  # whole again


def test_a_text_encoder_that_lacks_weights_is_refused(text_pipeline: Make, tmp_path: Path) -> None:
    folder = copied(text_pipeline("sdxl"), tmp_path)
    file = folder / "text_encoder_2" / "model.safetensors"
    state = load_file(file)
    state.pop("text_projection.weight")
    save_file(state, file, {"format": "pt"})
    with pytest.raises(UsageError, match=r"text_encoder_2.*lack.*text_projection"):
        opened(folder)


def test_files_of_the_first_publications_are_read(text_pipeline: Make, tmp_path: Path) -> None:
    here = text_pipeline("stable_diffusion")
    folder = copied(here, tmp_path)
    once = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}  # an attention's layers

    def renamed(key: str) -> str:
        for now, then in once.items():
            key = key.replace(f".{now}.", f".{then}.") if "attentions" in key else key
        return key

    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({renamed(key): weight for key, weight in load_file(file).items()}, file, {"format": "pt"})
    file = folder / "text_encoder" / "model.safetensors"
    state = {f"text_model.{key}": weight for key, weight in load_file(file).items()}
    save_file(state | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, file, {"format": "pt"})
    old, new = opened(folder), opened(here)
    assert old.decode is not None
    assert new.decode is not None
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(old.decode(x), new.decode(x))
    assert torch.equal(told(old, "red"), told(new, "red"))


def told(checkpoint: Checkpoint, prompt: str) -> Tensor:
    assert checkpoint.text is not None
    return checkpoint.text.encode([prompt], CPU)["prompt"]


def test_weights_in_several_files_and_halved_variants_are_read(text_pipeline: Make, tmp_path: Path) -> None:
    here = text_pipeline("flux")
    folder = copied(here, tmp_path)
    pipeline = pipeline_of(here)
    for part in ("transformer", "text_encoder_2"):
        shutil.rmtree(folder / part)
        with quiet():
            getattr(pipeline, part).save_pretrained(folder / part, max_shard_size="30KB")
        assert len(list((folder / part).glob("*.safetensors"))) > 2
    assert torch.equal(told(opened(folder), "red cat"), told(opened(here), "red cat"))
    with quiet():
        pipeline.to(torch.float16).save_pretrained(tmp_path / "halved", variant="fp16")
    with pytest.raises(UsageError, match="give variant=fp16"):
        opened(tmp_path / "halved")
    halved = opened(tmp_path / "halved", variant="fp16")
    assert next(halved.network.parameters()).dtype == torch.float32
    assert (told(halved, "red cat") - told(opened(here), "red cat")).abs().max() < 1e-2


def test_another_class_of_component_is_refused(text_pipeline: Make, tmp_path: Path) -> None:
    folder = copied(text_pipeline("stable_diffusion"), tmp_path)
    change(folder / "model_index.json", tokenizer=["os", "system"])
    with pytest.raises(UsageError, match="its tokenizer is a system"):
        opened(folder)
    change(folder / "model_index.json", tokenizer=["transformers", "CLIPTokenizer"], vae=["diffusers", "VQModel"])
    with pytest.raises(UsageError, match="its vae is a VQModel"):
        opened(folder)


def copied(folder: Path, where: Path) -> Path:
    return Path(shutil.copytree(folder, where / folder.name.rstrip("0123456789")))


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
