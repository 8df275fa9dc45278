"""Tiny pipelines without text: seeded random weights and the published ones' architecture, saved as they are."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
from torch import nn
from transformers import BertTokenizer

Make = Callable[[Path], Path]
DDPM = {  # google/ddpm-cifar10-32
    "sample_size": 16, "block_out_channels": (32, 64, 64, 64), "attention_head_dim": None, "downsample_padding": 0,
    "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
CONSISTENCY = {  # openai/diffusers-cd_imagenet64_l2
    "sample_size": 16, "block_out_channels": (32, 64, 64), "attention_head_dim": 32, "layers_per_block": 1,
    "num_class_embeds": 10, "resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 32,
    "downsample_type": "resnet", "upsample_type": "resnet",
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
}  # fmt: skip
LDM = {  # CompVis/ldm-celebahq-256
    "sample_size": 8, "block_out_channels": (32, 64), "attention_head_dim": 32, "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
DIT = {  # facebook/DiT-XL-2-256
    "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 8, "num_layers": 2,
    "sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 1000,
}  # fmt: skip
EXACT = {"clip_sample": False}  # no solver clips unless told to


def ddpm(folder: Path, **unet: Any) -> Path:
    """A DDPMPipeline with the scheduler of its training."""
    scheduler = diffusers.DDPMScheduler(**EXACT, variance_type="fixed_large")
    return _saved(lambda: diffusers.DDPMPipeline(diffusers.UNet2DModel(**DDPM, **unet), scheduler), folder)


def ddim(folder: Path, **scheduler: Any) -> Path:
    """A DDIMPipeline."""
    made = diffusers.DDIMScheduler(**EXACT, **scheduler)
    return _saved(lambda: diffusers.DDIMPipeline(diffusers.UNet2DModel(**DDPM), made), folder)


def flat(folder: Path) -> Path:
    """As the oldest pipelines lie: all files of the components in one folder."""
    ddpm(folder)
    for part in ("unet", "scheduler"):
        for file in (folder / part).iterdir():
            file.rename(folder / file.name)
        (folder / part).rmdir()
    return folder


def alone(folder: Path) -> Path:
    """A UNet2DModel without pipeline or scheduler."""
    return _saved(lambda: diffusers.UNet2DModel(**DDPM), folder)


def consistency(folder: Path, clip: bool = False) -> Path:
    """A ConsistencyModelPipeline with classes."""
    scheduler = diffusers.CMStochasticIterativeScheduler(clip_denoised=clip)
    made = lambda: diffusers.ConsistencyModelPipeline(diffusers.UNet2DModel(**CONSISTENCY), scheduler)  # noqa: E731
    return _saved(made, folder)


def dit(folder: Path) -> Path:
    """A DiTPipeline with ImageNet's thousand classes."""

    def make() -> Any:
        blocks = 3
        vae = diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks,
            block_out_channels=(32,) * blocks, layers_per_block=1, latent_channels=4, sample_size=32,
        )  # fmt: skip
        return diffusers.DiTPipeline(diffusers.DiTTransformer2DModel(**DIT), vae, diffusers.DDIMScheduler(**EXACT))

    return _saved(make, folder)


def old_dit(folder: Path) -> Path:
    """The same as facebook published it, when the class was a more general one."""
    dit(folder)
    for file in (folder / "model_index.json", folder / "transformer" / "config.json"):
        file.write_text(file.read_text().replace("DiTTransformer2DModel", "Transformer2DModel"))
    return folder


def ldm(folder: Path) -> Path:
    """An LDMPipeline, whose autoencoder has a code book."""

    def make() -> Any:
        vqvae = diffusers.VQModel(
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(32, 32), latent_channels=3, num_vq_embeddings=64, sample_size=16,
        )  # fmt: skip
        scheduler = diffusers.DDIMScheduler(
            **EXACT, beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195, set_alpha_to_one=True
        )
        return diffusers.LDMPipeline(vqvae, diffusers.UNet2DModel(**LDM), scheduler)

    return _saved(make, folder)


def ldm_text(folder: Path) -> Path:
    """An LDMTextToImagePipeline, with a transformer of its own for prompts."""
    words = folder.parent / "words.txt"
    words.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "cat"]))

    def make() -> Any:
        config = LDMBertConfig(
            vocab_size=9, encoder_layers=2, encoder_ffn_dim=64, encoder_attention_heads=2, head_dim=16, d_model=32
        )
        vae = diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(32,) * 4, layers_per_block=1, latent_channels=4,
        )  # fmt: skip
        unet = diffusers.UNet2DConditionModel(
            sample_size=4, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=32,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )  # fmt: skip
        scheduler = diffusers.DDIMScheduler(**EXACT, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
        tokenizer = BertTokenizer(str(words))
        return diffusers.LDMTextToImagePipeline(vae, LDMBertModel(config), tokenizer, unet, scheduler)

    return _saved(make, folder)


def change(file: Path, **values: Any) -> None:
    """Put values into a JSON file; None takes a key out."""
    changed = json.loads(file.read_text()) | values
    file.write_text(json.dumps({k: v for k, v in changed.items() if k not in values or v is not None}))


def _saved(make: Callable[[], Any], folder: Path) -> Path:
    """Saved with weights of a size at which the time and the class are seen in what a network gives."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = make()
        for model in made.components.values() if isinstance(made, diffusers.DiffusionPipeline) else [made]:
            if isinstance(model, nn.Module):
                for parameter in model.parameters():
                    if parameter.ndim == 1:
                        parameter.data += 0.1 * torch.randn_like(parameter)
    made.save_pretrained(folder)
    return folder
