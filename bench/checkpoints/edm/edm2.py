"""EDM2's network, whose layers keep the magnitude of what passes through them.

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", arXiv 2312.02696, App. B.
"""

import math
from collections.abc import Mapping
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from bench.checkpoints.edm.arguments import Blocks, Filter, Multiples, Positive, Size, UNetArguments
from bench.checkpoints.edm.layers import (
    Place,
    Resample,
    attend,
    decoder_places,
    encoder_places,
    exact,
    inexact,
    shared,
    split_heads,
)

EPS = 1e-4
SILU = 0.596  # the magnitude of silu of unit noise, Eq. (81)
Balance = Annotated[float, Field(ge=0, le=1)]


class EDM2Arguments(UNetArguments):
    """Configuration G, by default the "S" network's widths."""

    model_channels: Size = 192
    channel_mult: Multiples = (1, 2, 3, 4)
    channel_mult_noise: Size | None = None
    channel_mult_emb: Size | None = None
    num_blocks: Blocks = 3
    attn_resolutions: tuple[int, ...] = (16, 8)
    label_balance: Balance = 0.5
    concat_balance: Balance = 0.5
    res_balance: Balance = 0.3
    attn_balance: Balance = 0.3
    clip_act: Positive | None = 256.0
    channels_per_head: Size = 64
    resample_filter: Filter = (1, 1)


def normalised(x: Tensor, dims: int | tuple[int, ...]) -> Tensor:
    """x over its root mean square along `dims`, taken in float32 at least."""
    wide = torch.promote_types(x.dtype, torch.float32)
    size = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=wide)
    return x / (EPS + size * math.sqrt(size.numel() / x.numel())).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    return F.silu(x) / SILU


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Eq. (88)."""
    return a.lerp(b, t) / math.hypot(1 - t, t)


def mp_cat(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Eq. (103), along channels."""
    n_a, n_b = a.shape[1], b.shape[1]
    C = math.sqrt((n_a + n_b) / ((1 - t) ** 2 + t**2))
    return torch.cat([C / math.sqrt(n_a) * (1 - t) * a, C / math.sqrt(n_b) * t * b], 1)


def folded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors with weights normalised and multiplied by their gains, Eq. (47) and (66), once and for all.

    Files hold weights of any magnitude, which EDM2 normalises at every call, and gains beside the layers they are of.
    """
    gains = {name: tensor.float() for name, tensor in tensors.items() if name.endswith("_gain")}
    found = {name: tensor.float() for name, tensor in tensors.items() if name not in gains}
    layers = {gain.replace("emb_gain", "emb_linear").replace("out_gain", "out_conv"): gain for gain in gains}
    for name, w in found.items():
        if name.endswith(".weight"):
            gain = layers.get(name.removesuffix(".weight"))
            scale = (1.0 if gain is None else gains[gain]) / math.sqrt(w[0].numel())
            found[name] = normalised(w, tuple(range(1, w.ndim))) * scale
    return found


class MPFourier(nn.Module):
    """sqrt(2) cos(f_k t + p_k) of noise levels t (B,), (B, channels); Eq. (75)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.freqs = nn.Buffer(exact(torch.empty(channels)))
        self.phases = nn.Buffer(exact(torch.empty(channels)))

    def forward(self, t: Tensor) -> Tensor:
        return (t[:, None] * inexact(self.freqs, t.dtype) + inexact(self.phases, t.dtype)).cos() * math.sqrt(2)


def _conv(in_channels: int, out_channels: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)


class MPBlock(nn.Module):
    """Figure 21: the way down normalises each pixel before its residual branch, the way up does not: (x, emb) -> x."""

    def __init__(self, place: Place, a: EDM2Arguments, emb_channels: int, down: bool) -> None:
        super().__init__()
        i, o = place.in_channels, place.out_channels
        self.down, self.clip = down, a.clip_act
        self.res_balance, self.attn_balance = a.res_balance, a.attn_balance
        self.resample = nn.Identity() if place.mode == "keep" else Resample(place.mode, a.resample_filter)
        self.conv_skip = nn.Identity() if i == o else _conv(i, o, 1)
        self.conv_res0 = _conv(o if down else i, o, 3)
        self.emb_linear = nn.Linear(emb_channels, o, bias=False)
        self.conv_res1 = _conv(o, o, 3)
        self.heads = shared(o, o // a.channels_per_head) if place.attention else 0
        if self.heads:
            self.attn_qkv = _conv(o, 3 * o, 1)
            self.attn_proj = _conv(o, o, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        x = self.resample(x)
        if self.down:
            x = normalised(self.conv_skip(x), 1)
        told = self.emb_linear(emb)[:, :, None, None] + 1
        y = self.conv_res1(mp_silu(self.conv_res0(mp_silu(x)) * told))
        x = mp_sum(x if self.down else self.conv_skip(x), y, self.res_balance)
        if self.heads:
            qkv = normalised(split_heads(self.attn_qkv(x), self.heads), -1)
            x = mp_sum(x, self.attn_proj(attend(qkv, x)), self.attn_balance)
        return x if self.clip is None else x.clip(-self.clip, self.clip)


class EDM2UNet(nn.Module):
    """F(x, c_noise, labels): (B, C, R, R), (B,), (B, label_dim) or None -> (B, out_channels, R, R)."""

    def __init__(self, a: EDM2Arguments, out_channels: int) -> None:
        super().__init__()
        self.label_balance, self.concat_balance = a.label_balance, a.concat_balance
        noise = a.widths[0] if a.channel_mult_noise is None else a.model_channels * a.channel_mult_noise
        emb = max(a.widths) if a.channel_mult_emb is None else a.model_channels * a.channel_mult_emb
        self.emb_fourier = MPFourier(noise)
        self.emb_noise = nn.Linear(noise, emb, bias=False)
        if a.label_dim:
            self.emb_label = nn.Linear(a.label_dim, emb, bias=False)

        first, size = a.widths[0], a.img_resolution
        places = list(encoder_places(a, first))
        self.enc = nn.ModuleDict({f"{size}x{size}_conv": _conv(a.img_channels + 1, first, 3)})
        self.enc.update({place.name: MPBlock(place, a, emb, down=True) for place in places})
        ups = decoder_places(a, [first, *(place.out_channels for place in places)])
        self.dec = nn.ModuleDict({place.name: MPBlock(place, a, emb, down=False) for place in ups})
        self.out_conv = _conv(first, out_channels, 3)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        emb = self.emb_noise(self.emb_fourier(c_noise).to(self.emb_noise.weight.dtype))
        if labels is not None:
            emb = mp_sum(emb, self.emb_label(labels * math.sqrt(labels.shape[1])), self.label_balance)
        emb = mp_silu(emb)

        x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        skips: list[Tensor] = []
        for block in self.enc.values():
            x = block(x, emb) if isinstance(block, MPBlock) else block(x)
            skips.append(x)
        for name, block in self.dec.items():
            x = block(mp_cat(x, skips.pop(), self.concat_balance) if "block" in name else x, emb)
        return self.out_conv(x)
