"""A checkpoint from a state dict of guided-diffusion (ADM), Dhariwal & Nichol 2021, arXiv 2105.05233.

Such a file holds tensors alone.  Their shapes tell the widths, the blocks, where there is attention, the classes and
whether a variance is learned.  They do not tell the resolution, the noise schedule, the heads of attention and the
order of their rows: the published files are known by their names, and of others these are options.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.checkpoints.base import Checkpoint
from bench.checkpoints.edm.arguments import checked
from bench.checkpoints.edm.dhariwal import DhariwalArguments, DhariwalUNet
from bench.checkpoints.edm.layers import Style, decoder_places, encoder_places, exact, one_hot, shared
from bench.checkpoints.edm.load import expect, filled
from bench.checkpoints.pipelines.options import check_options
from bench.checkpoints.pipelines.schedule import labels
from bench.errors import UsageError
from bench.files import sha256
from bench.metrics.weights import digest_of, read_state
from solvers import Option, VPDiscrete

NEEDED: dict[str, type] = {"resolution": int, "schedule": str, "new_attention_order": bool}
HEADS: dict[str, type] = {"heads": int, "head_channels": int}  # one of the two is needed
USUAL: dict[str, Option] = {"schedule": "linear", "new_attention_order": False, "head_channels": 64}
PUBLISHED: dict[str, Mapping[str, Option]] = {  # by the names of the files
    "64x64_diffusion": {"resolution": 64, "schedule": "cosine", "new_attention_order": True, "head_channels": 64},
    "128x128_diffusion": {"resolution": 128, "schedule": "linear", "new_attention_order": False, "heads": 4},
    "512x512_diffusion": {"resolution": 512} | USUAL,
} | {
    name: {"resolution": 256} | USUAL
    for name in ("256x256_diffusion", "256x256_diffusion_uncond", "lsun_bedroom", "lsun_cat", "lsun_horse",
                 "lsun_horse_nodropout")
}  # fmt: skip
SCHEDULES = ("linear", "cosine")
N = 1000  # noise levels
BLOCK = {  # a residual block's layers, by their names in the file
    "in_layers.0": "norm0", "in_layers.2": "conv0", "emb_layers.1": "affine", "out_layers.0": "norm1",
    "out_layers.3": "conv1", "skip_connection": "skip",
}  # fmt: skip
ATTENTION = {"norm": "norm2", "qkv": "qkv", "proj_out": "proj"}  # of the attention behind it
ENDS = {
    "time_embed.0": "map_layer0", "time_embed.2": "map_layer1", "label_emb": "map_label", "out.0": "out_norm",
    "out.2": "out_conv",
}  # fmt: skip


class ADM(nn.Module):
    """eps(x, t, y): x (B, C, R, R), t = (n + 1)/1000 (B,), y (B,) int64 -> (B, C, R, R) in x's dtype.

    Where there are classes it was always told one: label `classes` is no class here, but not one it was trained with.
    """

    def __init__(self, model: DhariwalUNet, classes: int) -> None:
        super().__init__()
        self.model = model
        self.classes = classes

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        dtype = self.model.out_conv.weight.dtype
        told = None if y is None else one_hot(y, self.classes).to(dtype)
        out = self.model(x.to(dtype), labels(t, N), told)
        return out[:, : x.shape[1]].to(x.dtype)  # the rest, if any, is a learned variance


def load(path: Path, options: Mapping[str, Option], name: str) -> Checkpoint:
    """The network of a state dict; raises UsageError, and UnknownNameError for an unknown option."""
    check_options(name, options, NEEDED | HEADS | {"classes": int})
    settings = _settings(path, options)
    schedule = _schedule(settings["schedule"], path)
    state = _state(path)
    a = _arguments(state, settings["resolution"], path)
    expect(path, options, a.img_resolution, a.label_dim)
    try:
        network = ADM(_unet(state, a, settings, path), a.label_dim)
    except ValueError as error:
        raise error if isinstance(error, UsageError) else UsageError(f"{path}: {error}") from error
    return Checkpoint(
        name=name,
        digest=_digest(path, settings),
        network=network.eval(),
        schedule=schedule,
        predicts="noise",
        shape=(a.img_channels, a.img_resolution, a.img_resolution),
        classes=(1 / max(a.label_dim, 1),) * a.label_dim,
        card={"network": "ADM", "parameters": sum(w.numel() for w in network.parameters())},
        knows_no_class=False,
    )


def _settings(path: Path, options: Mapping[str, Option]) -> dict[str, Any]:
    """What shapes do not tell, from options before the published files' own; raises UsageError for what is missing."""
    known = PUBLISHED.get(path.stem, {})
    if HEADS.keys() & options.keys():
        known = {k: v for k, v in known.items() if k not in HEADS}
    found = {**known, **options}
    missing = [option for option in NEEDED if option not in found]
    if not HEADS.keys() & found.keys():
        missing.append(" or ".join(HEADS))
    if missing:
        raise UsageError(f"{path}: a file of tensors does not say its {', '.join(missing)}: give them as options")
    if HEADS.keys() <= found.keys():
        raise UsageError(f"{path}: heads and head_channels say the same: give one of them")
    for option in (*HEADS, "resolution"):
        if found.get(option, 1) < 1:
            raise UsageError(f"{path}: {option}={found[option]} must be at least 1")
    return found


def _digest(path: Path, settings: Mapping[str, Any]) -> str:
    """Of the file, and of what it does not say and samples depend on."""
    told = {option: settings[option] for option in (*NEEDED, *HEADS) if option in settings}
    return sha256(json.dumps([digest_of(path), told], sort_keys=True).encode())


def _schedule(kind: str, path: Path) -> VPDiscrete:
    """Ho et al.'s betas, or those of a cosine, Nichol & Dhariwal 2021, arXiv 2102.09672, Eq. (17), of at most 0.999."""
    if kind == "linear":
        return VPDiscrete.linear(N=N)
    if kind == "cosine":
        alpha_bar = np.cos((np.arange(N + 1) / N + 0.008) / 1.008 * math.pi / 2) ** 2
        return VPDiscrete(tuple(np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999).tolist()))
    raise UsageError(f"{path}: schedule={kind} is none of {', '.join(SCHEDULES)}")


def _state(path: Path) -> dict[str, Tensor]:
    """The tensors, if they are those of an image model of the kind that was published; raises UsageError."""
    state = read_state(path)
    if not isinstance(state, dict) or not all(isinstance(w, Tensor) for w in state.values()):
        raise UsageError(f"{path} is no state dict: give a file of tensors by their names")
    if not {"time_embed.0.weight", "input_blocks.0.0.weight", "output_blocks.0.0.in_layers.2.weight"} <= state.keys():
        raise UsageError(f"{path} is no diffusion network of guided-diffusion: it has no time_embed and output_blocks")
    if any(re.fullmatch(r"(input|output)_blocks\.\d+\.\d+\.(op|conv)\.weight", name) for name in state):
        raise UsageError(f"{path} has resblock_updown=False: only networks that resample in residual blocks are read")
    block = "output_blocks.0.0"
    if len(state[f"{block}.in_layers.2.weight"]) == len(state.get(f"{block}.emb_layers.1.weight", ())):
        raise UsageError(f"{path} has use_scale_shift_norm=False: only networks that scale and shift are read")
    first, last = state["input_blocks.0.0.weight"], state.get("out.2.weight")
    if last is None or last.shape[0] not in (first.shape[1], 2 * first.shape[1]):
        raise UsageError(f"{path} does not give what it takes: super-resolution networks are not read")
    return state


def _arguments(state: Mapping[str, Tensor], resolution: int, path: Path) -> DhariwalArguments:
    """What the shapes tell: blocks are counted, and one that a residual block follows in its place ends a level."""
    count = len({name.split(".")[1] for name in state if name.startswith("input_blocks.")})
    levels = 1 + len({m[1] for name in state if (m := re.match(r"output_blocks\.(\d+)\.[12]\.in_layers", name))})
    blocks = count // levels - 1
    starts = [1 + level * (blocks + 1) for level in range(levels)]
    model_channels = state["time_embed.0.weight"].shape[-1]
    kernels = [state.get(f"input_blocks.{i}.0.in_layers.2.weight") for i in starts]
    if count % levels or any(kernel is None for kernel in kernels):
        raise UsageError(
            f"{path} is no diffusion network of guided-diffusion: its {count} blocks fill no {levels} levels"
        )
    found = {
        "img_resolution": resolution,
        "img_channels": state["input_blocks.0.0.weight"].shape[1],
        "label_dim": len(state["label_emb.weight"]) if "label_emb.weight" in state else 0,
        "model_channels": model_channels,
        "channel_mult": [len(kernel) / model_channels for kernel in kernels if kernel is not None],
        "num_blocks": blocks,
        "attn_resolutions": [
            resolution >> k for k, i in enumerate(starts) if f"input_blocks.{i}.1.qkv.weight" in state
        ],
    }
    return checked(DhariwalArguments, found, "a network", path)


def _unet(state: Mapping[str, Tensor], a: DhariwalArguments, settings: Mapping[str, Any], path: Path) -> DhariwalUNet:
    """EDM's network of the same function, which differs in names and in how the rows of qkv are ordered."""
    style = Style(
        a.model_channels * a.channel_mult_emb, settings.get("heads"), settings.get("head_channels", 1), group_channels=1
    )
    with torch.device("meta"):
        model = DhariwalUNet(a, len(state["out.2.weight"]), style)
    modules = dict(_names(a))
    tensors = {}
    for name, w in state.items():
        module, _, leaf = name.rpartition(".")
        ours = modules.get(module, module)
        if ours.endswith(".qkv"):
            channels = len(w) // 3
            heads = shared(channels, style.heads or channels // style.head_channels)
            w = _reordered(w, heads, settings["new_attention_order"])
        if ours.endswith((".qkv", ".proj")) and leaf == "weight":
            w = w[..., None]  # of a convolution in one dimension
        tensors[f"{ours}.{leaf}"] = w.T if ours == "map_label" else w
    filled(model, tensors, path)
    k = torch.arange(a.model_channels // 2, dtype=torch.float32)  # as its float32 rounds them, EDM's otherwise
    model.map_noise.freqs = exact(torch.exp(-math.log(10000) * k / len(k)))
    return model


def _names(a: DhariwalArguments) -> Iterator[tuple[str, str]]:
    """Modules by their names in the file, and what they are called here."""
    size = a.img_resolution
    yield from [*ENDS.items(), ("input_blocks.0.0", f"enc.{size}x{size}_conv")]
    down = list(encoder_places(a, a.widths[0]))
    for i, place in enumerate(down, 1):
        yield from _block(f"input_blocks.{i}", 0, f"enc.{place.name}")
    i, follows = 0, 0
    for place in decoder_places(a, [a.widths[0], *(place.out_channels for place in down)]):
        ours = f"dec.{place.name}"
        if place.name.endswith("_in0"):
            yield from _block("middle_block", 0, ours)
        elif place.name.endswith("_in1"):
            yield from _block("middle_block", 2, ours)
        elif place.mode == "up":  # behind the last block of the level below
            yield from _block(f"output_blocks.{i - 1}", follows, ours)
        else:
            yield from _block(f"output_blocks.{i}", 0, ours)
            i, follows = i + 1, 2 if place.attention else 1


def _block(theirs: str, at: int, ours: str) -> Iterator[tuple[str, str]]:
    """The layers of a residual block, and of the attention that may follow it."""
    yield from ((f"{theirs}.{at}.{name}", f"{ours}.{own}") for name, own in BLOCK.items())
    yield from ((f"{theirs}.{at + 1}.{name}", f"{ours}.{own}") for name, own in ATTENTION.items())


def _reordered(rows: Tensor, heads: int, new: bool) -> Tensor:
    """Rows (3 C, ...) ordered by (q, k, v), head and channel, or by head first in the old order, to EDM's.

    EDM's are ordered by head, channel and (q, k, v).
    """
    each = len(rows) // (3 * heads)
    by_head = rows.reshape(3, heads, each, -1).transpose(0, 1) if new else rows.reshape(heads, 3, each, -1)
    return by_head.transpose(1, 2).reshape(rows.shape)
