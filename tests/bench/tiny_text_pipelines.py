"""Tiny text-to-image pipelines: seeded random weights and the published ones' architecture, saved as they are."""

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel

from bench.checkpoints.pipelines.files import quiet

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
UNET = {
    "in_channels": 4, "out_channels": 4, "sample_size": 8, "layers_per_block": 1, "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 32,
}  # fmt: skip
WORDS = ("red", "blue", "cat", "photo", "of")  # words that are one token; all others fall into bytes


def clip_tokenizer() -> transformers.CLIPTokenizer:
    """Byte-level BPE with CLIP's special tokens: each byte alone and at a word's end, and merges for a few words."""
    alphabet = sorted(ByteLevel.alphabet())
    merges, pieces = [], []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts[:2] = ["".join(parts[:2])]
            pieces.append(parts[0])
    tokens = [*alphabet, *(f"{c}</w>" for c in alphabet), *dict.fromkeys(pieces), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    return transformers.CLIPTokenizer(vocab=vocab, merges=list(dict.fromkeys(merges)), model_max_length=77)


def t5_tokenizer() -> transformers.T5TokenizerFast:
    """A unigram tokenizer over lower-case letters and a few words."""
    words = ["<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz", *(f"▁{word}" for word in WORDS)]
    vocab = [(word, -float(len(word) == 1)) for word in words]
    return transformers.T5TokenizerFast(vocab=vocab, extra_ids=0, model_max_length=512)


def clip(tokenizer: Any, width: int = 32, act: str = "quick_gelu", projected: bool = False) -> Any:
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_attention_heads=4,
        num_hidden_layers=3, projection_dim=width, hidden_act=act, pad_token_id=tokenizer.pad_token_id, **ends,
    )  # fmt: skip
    return (transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel)(config)


def t5(tokenizer: Any, width: int = 32) -> Any:
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return transformers.T5EncoderModel(config)


def vae(channels: int = 4, **config: Any) -> diffusers.AutoencoderKL:
    """Eight times smaller on each side, as all of these are."""
    blocks = 4
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=(8, 8, 16, 16), layers_per_block=1, latent_channels=channels, norm_num_groups=8,
        sample_size=64, **config,
    )  # fmt: skip


def stable_diffusion(prediction: str = "epsilon") -> Any:
    """Stable Diffusion 1.x, or with "v_prediction" 2.x, which has linear projections and one head a 64 channels."""
    second = {"use_linear_projection": True, "attention_head_dim": (4, 8)} if prediction == "v_prediction" else {}
    tokenizer = clip_tokenizer()
    return diffusers.StableDiffusionPipeline(
        vae=vae(scaling_factor=0.18215), text_encoder=clip(tokenizer, act="gelu" if second else "quick_gelu"),
        tokenizer=tokenizer, unet=diffusers.UNet2DConditionModel(**UNET, **second),
        scheduler=diffusers.PNDMScheduler(**BETAS, prediction_type=prediction, skip_prk_steps=True),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def stable_diffusion_2() -> Any:
    return stable_diffusion("v_prediction")


def lcm() -> Any:
    """A latent consistency model, whose UNet is told the guidance scale."""
    tokenizer = clip_tokenizer()
    return diffusers.LatentConsistencyModelPipeline(
        vae=vae(scaling_factor=0.18215), text_encoder=clip(tokenizer), tokenizer=tokenizer,
        unet=diffusers.UNet2DConditionModel(**UNET, time_cond_proj_dim=16), scheduler=diffusers.LCMScheduler(**BETAS),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sdxl_unet(**more: Any) -> diffusers.UNet2DConditionModel:
    return diffusers.UNet2DConditionModel(
        **UNET | {"cross_attention_dim": 64}, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32, use_linear_projection=True, attention_head_dim=(4, 8),
        transformer_layers_per_block=(1, 2), **more,
    )  # fmt: skip


def sdxl() -> Any:
    """Stable Diffusion XL: two text encoders, the second one's pooled output, and the image's size."""
    tokenizer = clip_tokenizer()
    second = clip_tokenizer()
    second.pad_token = "!"
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(scaling_factor=0.13025, force_upcast=True), text_encoder=clip(tokenizer),
        text_encoder_2=clip(second, act="gelu", projected=True), tokenizer=tokenizer, tokenizer_2=second,
        unet=sdxl_unet(), scheduler=diffusers.EulerDiscreteScheduler(**BETAS, timestep_spacing="leading"),
        add_watermarker=False,
    )  # fmt: skip


def sd3(with_t5: bool = True) -> Any:
    """Stable Diffusion 3, whose largest text encoder, T5, may be left out."""
    tokenizer, third = clip_tokenizer(), t5_tokenizer()
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=16, out_channels=16, num_layers=2, attention_head_dim=8,
        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=64, pooled_projection_dim=64,
        pos_embed_max_size=16,
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(tokenizer, projected=True), tokenizer=tokenizer,
        text_encoder_2=clip(tokenizer, act="gelu", projected=True), tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5(third, 64) if with_t5 else None, tokenizer_3=third if with_t5 else None,
    )  # fmt: skip


def sd3_without_t5() -> Any:
    return sd3(with_t5=False)


def flux(guidance: bool = True) -> Any:
    """FLUX.1 dev, told the guidance scale and shifted by the image's size, or schnell, neither."""
    tokenizer, second = clip_tokenizer(), t5_tokenizer()
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, guidance_embeds=guidance, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    dynamic = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    return diffusers.FluxPipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**(dynamic if guidance else {"shift": 1.0})),
        vae=vae(16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(tokenizer), tokenizer=tokenizer, text_encoder_2=t5(second), tokenizer_2=second,
    )  # fmt: skip


def flux_schnell() -> Any:
    return flux(guidance=False)


MAKERS = {
    f.__name__: f for f in (stable_diffusion, stable_diffusion_2, lcm, sdxl, sd3, sd3_without_t5, flux, flux_schnell)
}


def save(name: str, folder: Path, seed: int = 0) -> Path:
    """One of these pipelines in a folder, its weights drawn from `seed`."""
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(seed)
        MAKERS[name]().save_pretrained(folder)
    return folder
