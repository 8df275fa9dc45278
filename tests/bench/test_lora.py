"""Adapters and other UNets on text-to-image pipelines: what diffusers itself makes of them, and what is refused."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

import solvers
from bench.checkpoints.pipelines import load
from bench.checkpoints.pipelines.files import quiet
from bench.errors import UsageError
from tests.bench import tiny_text_pipelines
from tests.bench.test_pipelines_text import CPU, DDIM, opened, pipeline_of, sampled, theirs
from tests.bench.tiny_text_pipelines import BETAS

Make = Callable[[str], Path]
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj")
RANK, ALPHA = 4, 8  # alpha differs from the rank, so that a reader who forgets it is wrong by two


def adapter(folder: Path, out: Path, seed: int = 0) -> Path:
    """An adapter of the network and of the first text encoder with random weights, as diffusers saves it."""
    pipeline = pipeline_of(folder)
    name = "unet" if hasattr(pipeline, "unet") else "transformer"
    layers: dict[str, Any] = {}
    for component, modules in ((name, ATTENTION), ("text_encoder", TEXT)):
        network = getattr(pipeline, component)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(modules)))
            for key, weight in network.named_parameters():
                if "lora_B" in key:
                    torch.nn.init.normal_(weight, std=0.3)
        layers[f"{component}_lora_layers"] = get_peft_model_state_dict(network)
        layers[f"{component}_lora_adapter_metadata"] = network.peft_config["default"].to_dict()
    type(pipeline).save_lora_weights(out, **layers)
    return out


CASES = [
    ("stable_diffusion", "diffusers:DDIMScheduler", {"guidance_scale": 7.5, "negative_prompt": ["", ""]}, 7.5),
    ("sdxl", "diffusers:DDIMScheduler", {"guidance_scale": 5.0}, 5.0),
    ("sd3", "diffusers:FlowMatchEulerDiscreteScheduler", {"guidance_scale": 4.0}, 4.0),
    ("flux", "flow_euler", {"guidance_scale": 3.5}, 3.5),
]


@pytest.mark.parametrize(("name", "solver", "arguments", "guidance"), CASES, ids=[case[0] for case in CASES])
def test_samples_with_an_adapter_are_those_of_the_pipeline(
    name: str, solver: str, arguments: dict[str, Any], guidance: float, text_pipeline: Make, tmp_path: Path
) -> None:
    folder = text_pipeline(name)
    lora = adapter(folder, tmp_path / "lora")
    checkpoint, plain = opened(folder, lora=str(lora), lora_scale=0.7), opened(folder)
    ddim = name in ("stable_diffusion", "sdxl")
    plan = solvers.plan(solver, checkpoint.schedule, 3, **DDIM if ddim else {})
    x_T, x = sampled(checkpoint, plan, guidance)
    pipeline = pipeline_of(folder, diffusers.DDIMScheduler(**BETAS | DDIM) if ddim else None)
    with quiet():
        pipeline.load_lora_weights(lora)
    pipeline.set_adapters("default_0", 0.7)
    expected, images = theirs(pipeline, x_T, 3, **arguments)
    size = float(expected.abs().max())
    assert (x - expected).abs().max() < 1e-5 * max(1.0, size)
    assert checkpoint.decode is not None
    assert (checkpoint.decode(expected).clip(-1, 1) - images).abs().max() < 1e-5
    assert (sampled(plain, plan, guidance)[1] - x).abs().max() > 1e-3 * size
    for ours, bare in zip(checkpoint.network.modules(), plain.network.modules(), strict=True):
        assert type(ours) is type(bare)  # fused: nothing is added to what runs
    text, bare_text = checkpoint.text, plain.text
    assert text is not None
    assert bare_text is not None
    told, untold = text.encode(["red"], CPU), bare_text.encode(["red"], CPU)
    assert any((told[key] - untold[key]).abs().max() > 1e-3 for key in told)


def test_kohyas_format_is_read_with_its_alphas(text_pipeline: Make, tmp_path: Path) -> None:
    folder = text_pipeline("stable_diffusion")
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    state, down, up = kohya(layer)
    save_file(state, tmp_path / "kohya.safetensors")
    before, after = (
        checkpoint.network.get_submodule(f"model.{layer}").weight
        for checkpoint in (opened(folder), opened(folder, lora=str(tmp_path / "kohya.safetensors"), lora_scale=0.5))
    )
    assert isinstance(before, Tensor)
    assert isinstance(after, Tensor)
    assert (after - before - 0.5 * ALPHA / RANK * up @ down).abs().max() < 1e-6


def kohya(layer: str, width: int = 32) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    down, up = (torch.randn(*shape, generator=generator) for shape in ((RANK, width), (width, RANK)))
    key = "lora_unet_" + layer.replace(".", "_")
    alpha = torch.tensor(float(ALPHA))
    return {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": alpha}, down, up


def test_an_adapter_of_tensors_alone_may_be_a_bin(text_pipeline: Make, tmp_path: Path) -> None:
    folder = text_pipeline("stable_diffusion")
    state, *_ = kohya("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q")
    save_file(state, tmp_path / "kohya.safetensors")
    torch.save(state, tmp_path / "kohya.bin")
    safe, loose = (opened(folder, lora=str(tmp_path / f"kohya.{end}")) for end in ("safetensors", "bin"))
    for a, b in zip(safe.network.parameters(), loose.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_digest_knows_the_adapter_and_its_scale(text_pipeline: Make, tmp_path: Path) -> None:
    folder = text_pipeline("stable_diffusion")
    one, two = (str(adapter(folder, tmp_path / str(seed), seed)) for seed in (0, 1))
    plain = opened(folder)
    assert plain.reopen is not None
    digests = [plain.digest] + [
        plain.reopen(more).digest for more in ({"lora": one}, {"lora": two}, {"lora": one, "lora_scale": 0.5})
    ]
    assert len(set(digests)) == 4
    assert plain.reopen({"lora": f"{one}/pytorch_lora_weights.safetensors", "lora_scale": 1.0}).digest == digests[1]


def test_an_adapter_of_another_network_is_refused(text_pipeline: Make, tmp_path: Path) -> None:
    wrong = {
        "another base": adapter(text_pipeline("sdxl"), tmp_path / "sdxl") / "pytorch_lora_weights.safetensors",
        "one layer too many": tmp_path / "more.safetensors",
        "another width": tmp_path / "wide.safetensors",
        "no adapter": tmp_path / "none.safetensors",
    }
    fits = kohya("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q")[0]
    more = kohya("down_blocks.7.attentions.0.transformer_blocks.0.attn1.to_q")[0]
    save_file(fits | more, wrong["one layer too many"])
    wide = kohya("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", 48)[0]
    save_file(wide, wrong["another width"])
    save_file({"conv.weight": torch.zeros(3)}, wrong["no adapter"])
    for path in wrong.values():
        with pytest.raises(UsageError, match="is no adapter of this StableDiffusionPipeline") as refused:
            opened(text_pipeline("stable_diffusion"), lora=str(path))
        assert "\n" not in str(refused.value)


class Hostile:
    def __reduce__(self) -> Any:
        return print, ("executed",)


def test_files_that_are_no_tensors_are_refused(
    text_pipeline: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.bin"
    bad.write_bytes(pickle.dumps(Hostile(), protocol=2))
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    for option in ("lora", "unet"):
        for path, why in ((bad, r"asks to import \S*print"), (tmp_path / "cut.safetensors", "no whole safetensors")):
            with pytest.raises(UsageError, match=why):
                opened(text_pipeline("stable_diffusion"), **{option: str(path)})
    assert "executed" not in capsys.readouterr().out
    for path, why in ((tmp_path / "nowhere", "is not there"), (tmp_path, "holds cut.safetensors")):
        if path.exists():
            (path / "second.safetensors").write_bytes(b"")
        with pytest.raises(UsageError, match=why):
            opened(text_pipeline("stable_diffusion"), lora=str(path))


@pytest.fixture(scope="module")
def unets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another UNet for the tiny Stable Diffusion XL: a folder, told the scale of guidance too; bare weights, halved."""
    folder = tmp_path_factory.mktemp("unets")
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(5)
        tiny_text_pipelines.sdxl_unet(time_cond_proj_dim=16).save_pretrained(folder / "lcm")
        state = {k: v.half() for k, v in tiny_text_pipelines.sdxl_unet().state_dict().items()}
        tiny_text_pipelines.sdxl_unet(num_class_embeds=3).save_pretrained(folder / "classes")
        diffusers.UNet2DConditionModel(**tiny_text_pipelines.UNET).save_pretrained(folder / "sd1")
    save_file(state, folder / "bare.safetensors")
    torch.save(state, folder / "bare.bin")
    return folder


@pytest.mark.parametrize("file", ["bare.safetensors", "bare.bin"])
def test_bare_weights_stand_in_for_the_unet(file: str, text_pipeline: Make, unets: Path) -> None:
    folder = text_pipeline("sdxl")
    checkpoint = opened(folder, unet=str(unets / file))
    plan = solvers.plan("diffusers:DDIMScheduler", checkpoint.schedule, 3, **DDIM)
    x_T, x = sampled(checkpoint, plan, 5.0)
    pipeline = pipeline_of(folder, diffusers.DDIMScheduler(**BETAS | DDIM))
    pipeline.unet.load_state_dict(load_file(unets / "bare.safetensors"))
    expected, _ = theirs(pipeline, x_T, 3, guidance_scale=5.0)
    assert (x - expected).abs().max() < 1e-5 * float(expected.abs().max())
    assert next(checkpoint.network.parameters()).dtype == torch.float32
    assert checkpoint.digest != opened(folder).digest


def test_a_folder_s_own_config_counts(text_pipeline: Make, unets: Path) -> None:
    folder = text_pipeline("sdxl")
    checkpoint = opened(folder, unet=str(unets / "lcm"))
    assert checkpoint.scale_as_input
    assert not opened(folder).scale_as_input
    plan = solvers.plan("diffusers:LCMScheduler", checkpoint.schedule, 1)
    x_T, x = sampled(checkpoint, plan, 6.0)
    pipeline = pipeline_of(folder, diffusers.LCMScheduler(**BETAS))
    with quiet():
        pipeline.unet = diffusers.UNet2DConditionModel.from_pretrained(unets / "lcm")
    expected, _ = theirs(pipeline, x_T, 1, guidance_scale=6.0)
    assert (x - expected).abs().max() < 1e-5 * float(expected.abs().max())


def test_a_unet_that_does_not_go_with_the_base_is_refused(text_pipeline: Make, unets: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"does not go with .*: its cross_attention_dim is 32, not 64"):
        opened(text_pipeline("sdxl"), unet=str(unets / "sd1"))
    with pytest.raises(UsageError, match=r"does not hold the weights of this pipeline's UNet: \d+ names or shapes"):
        opened(text_pipeline("stable_diffusion"), unet=str(unets / "bare.safetensors"))
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(UsageError, match="unet is a UNet2DModel"):
        opened(text_pipeline("sdxl"), unet=str(tmp_path))


def test_an_adapter_goes_on_another_unet(text_pipeline: Make, unets: Path, tmp_path: Path) -> None:
    lora = adapter(text_pipeline("sdxl"), tmp_path / "lora")
    both = load(text_pipeline("sdxl"), {"unet": str(unets / "bare.bin"), "lora": str(lora)}, "both")
    unet = opened(text_pipeline("sdxl"), unet=str(unets / "bare.bin"))
    layer = "model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    state = load_file(lora / "pytorch_lora_weights.safetensors")
    key = layer.removeprefix("model.").removesuffix(".weight")
    change = state[f"unet.{key}.lora_B.weight"] @ state[f"unet.{key}.lora_A.weight"] * ALPHA / RANK
    assert (both.network.get_parameter(layer) - unet.network.get_parameter(layer) - change).abs().max() < 1e-6
