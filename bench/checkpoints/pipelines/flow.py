"""Stable Diffusion 3 and Flux: transformers that predict the velocity of a rectified flow, told of prompts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.checkpoints.base import Checkpoint
from bench.checkpoints.pipelines import text
from bench.checkpoints.pipelines.text_to_image import Kind, Told
from bench.checkpoints.pipelines.text_to_image import load as load_kind
from solvers import Option

FLUX_SIDE = 128  # of the latents, which nothing in its files says: 1024 pixels
T5_TOKENS = {True: 512, False: 256}  # that Flux reads: dev, which is told the guidance scale, and schnell


class ToldSD3(Told):
    """network(x, t, prompt, pooled): t is the flow's own time, from 1, the noise, to 0."""

    def __init__(self, model: Any, N: int) -> None:
        super().__init__(model)
        self.N = N
        self.channels = model.config.in_channels
        self.side = (model.config.sample_size,) * 2
        self.patch = model.config.patch_size
        self.most = model.config.pos_embed_max_size * self.patch

    def forward(self, x: Tensor, t: Tensor, prompt: Tensor, pooled: Tensor) -> Tensor:
        dtype = self.model.dtype
        out: Tensor = self.model(x.to(dtype), prompt.to(dtype), pooled.to(dtype), self.N * t, return_dict=False)[0]
        return out.to(x.dtype)


class ToldFlux(Told):
    """network(x, t, prompt, pooled, w): as ToldSD3, and `w` the guidance scale that dev was distilled to be told.

    Its transformer sees a sequence of 2x2 patches, and nobody else does.
    """

    patch = 2
    side = (FLUX_SIDE, FLUX_SIDE)

    def __init__(self, model: Any, N: int) -> None:
        super().__init__(model)
        self.channels = model.config.in_channels // self.patch**2
        self.scale_as_input = bool(model.config.guidance_embeds)

    def forward(self, x: Tensor, t: Tensor, prompt: Tensor, pooled: Tensor, w: Tensor | None = None) -> Tensor:
        dtype, height, width = self.model.dtype, x.shape[2] // 2, x.shape[3] // 2
        axes = [torch.arange(n, device=x.device, dtype=torch.float32) for n in (1, height, width)]
        out = self.model(
            hidden_states=pack(x).to(dtype), timestep=t, guidance=w, encoder_hidden_states=prompt.to(dtype),
            pooled_projections=pooled.to(dtype), img_ids=torch.cartesian_prod(*axes),
            txt_ids=torch.zeros(prompt.shape[1], 3, device=x.device), return_dict=False,
        )[0]  # fmt: skip
        return unpack(out, height, width).to(x.dtype)


def pack(x: Tensor) -> Tensor:
    """Images (B, C, 2 h, 2 w) to a sequence of their 2x2 patches, row by row, (B, h w, 4 C)."""
    B, C, H, W = x.shape
    return x.reshape(B, C, H // 2, 2, W // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(B, H * W // 4, 4 * C)


def unpack(x: Tensor, h: int, w: int) -> Tensor:
    """The inverse of `pack`."""
    B, _, D = x.shape
    return x.reshape(B, h, w, D // 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(B, D // 4, 2 * h, 2 * w)


SD3 = Kind(
    network="transformer",
    model="SD3Transformer2DModel",
    encoders={
        "text_encoder": "CLIPTextModelWithProjection", "text_encoder_2": "CLIPTextModelWithProjection",
        "text_encoder_3": "T5EncoderModel",
    },
    adapt=ToldSD3,
    encode=lambda network, height, width: text.two_clips_and_t5,
    optional=("text_encoder_3",),
)  # fmt: skip
FLUX = Kind(
    network="transformer",
    model="FluxTransformer2DModel",
    encoders={"text_encoder": "CLIPTextModel", "text_encoder_2": "T5EncoderModel"},
    adapt=ToldFlux,
    encode=lambda network, height, width: text.clip_and_t5(T5_TOKENS[network.scale_as_input]),
)


def load_sd3(path: Path, options: Mapping[str, Option], name: str) -> Checkpoint:
    """Stable Diffusion 3 or 3.5; raises UsageError."""
    return load_kind(path, options, name, SD3)


def load_flux(path: Path, options: Mapping[str, Option], name: str) -> Checkpoint:
    """FLUX.1; raises UsageError."""
    return load_kind(path, options, name, FLUX)
