"""Stable Diffusion 1.x, 2.x and XL, and latent consistency models: UNets that are told of prompts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.checkpoints.base import Checkpoint
from bench.checkpoints.pipelines import text
from bench.checkpoints.pipelines.schedule import labels
from bench.checkpoints.pipelines.text_to_image import OPTIONS, Kind, Told
from bench.checkpoints.pipelines.text_to_image import load as load_kind
from distill.embedding import sinusoidal
from solvers import Option


class ToldUNet(Told):
    """network(x, t, prompt, pooled, size, w): t in a VPDiscrete's time, `size` and `pooled` for XL alone.

    `w` is the guidance scale of a UNet that was distilled to be told it, as the pipelines count it: 1 is no guidance.
    Luo et al. 2023, arXiv 2310.04378, Section 4.3.
    """

    def __init__(self, model: Any, N: int) -> None:
        super().__init__(model)
        config = model.config
        side = config.sample_size
        self.N = N
        self.channels = config.in_channels
        self.side = (side, side) if isinstance(side, int) else tuple(side)
        self.scale_as_input = config.time_cond_proj_dim is not None

    def forward(
        self, x: Tensor, t: Tensor, prompt: Tensor, pooled: Tensor | None = None, size: Tensor | None = None,
        w: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        dtype = self.model.dtype
        added = {} if pooled is None else {"text_embeds": pooled.to(dtype), "time_ids": size}
        scale = None if w is None else sinusoidal(1000 * (w - 1), self.model.config.time_cond_proj_dim).to(dtype)
        out: Tensor = self.model(
            x.to(dtype), labels(t, self.N), prompt.to(dtype), timestep_cond=scale, added_cond_kwargs=added,
            return_dict=False,
        )[0]  # fmt: skip
        return out.to(x.dtype)


ONE_CLIP = Kind(
    network="unet",
    model="UNet2DConditionModel",
    encoders={"text_encoder": "CLIPTextModel"},
    adapt=ToldUNet,
    encode=lambda network, height, width: text.clip,
    settings=lambda index: {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
    options={**OPTIONS, "unet": str},
)
XL = Kind(
    network="unet",
    model="UNet2DConditionModel",
    encoders={"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"},
    adapt=ToldUNet,
    encode=lambda network, height, width: text.two_clips(height, width),
    settings=lambda index: {
        "add_watermarker": False, "force_zeros_for_empty_prompt": index.get("force_zeros_for_empty_prompt", True),
    },
    options={**OPTIONS, "unet": str},
)  # fmt: skip


def load(path: Path, options: Mapping[str, Option], name: str) -> Checkpoint:
    """Stable Diffusion 1.x or 2.x, or a latent consistency model made of one; raises UsageError."""
    return load_kind(path, options, name, ONE_CLIP)


def load_xl(path: Path, options: Mapping[str, Option], name: str) -> Checkpoint:
    """Stable Diffusion XL; raises UsageError."""
    return load_kind(path, options, name, XL)
