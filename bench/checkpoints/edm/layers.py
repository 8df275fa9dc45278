"""What the U-Nets of EDM are made of: where their blocks lie, resampling, attention, residual blocks, embeddings."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.checkpoints.edm.arguments import UNetArguments

Mode = Literal["keep", "up", "down"]


@dataclass(frozen=True)
class Place:
    """A block of a U-Net: its name in files, its widths, whether it resamples first, and whether it attends."""

    name: str
    in_channels: int
    out_channels: int
    mode: Mode = "keep"
    attention: bool = False


def encoder_places(a: UNetArguments, first: int) -> Iterator[Place]:
    """The blocks of the way down, behind a convolution to `first` channels."""
    channels = first
    for level, width in enumerate(a.widths):
        size = a.img_resolution >> level
        if level:
            yield Place(f"{size}x{size}_down", channels, channels, "down")
        for k in range(a.num_blocks):
            yield Place(f"{size}x{size}_block{k}", channels, width, attention=size in a.attn_resolutions)
            channels = width


def decoder_places(a: UNetArguments, skips: Sequence[int], attend_last: bool = False) -> Iterator[Place]:
    """The blocks of the way up; those called "block" are joined by the way down's outputs, of widths `skips`.

    With `attend_last` only the last block of a resolution attends.
    """
    left, channels, deepest = list(skips), skips[-1], len(a.widths) - 1
    for level in range(deepest, -1, -1):
        size, width = a.img_resolution >> level, a.widths[level]
        if level == deepest:
            yield Place(f"{size}x{size}_in0", channels, channels, attention=True)
            yield Place(f"{size}x{size}_in1", channels, channels)
        else:
            yield Place(f"{size}x{size}_up", channels, channels, "up")
        for k in range(a.num_blocks + 1):
            attention = size in a.attn_resolutions and (k == a.num_blocks or not attend_last)
            yield Place(f"{size}x{size}_block{k}", channels + left.pop(), width, attention=attention)
            channels = width


class Resample(nn.Module):
    """Half or twice the resolution by a separable filter of even length; `inner` leaves its padding to others."""

    def __init__(self, mode: Mode, taps: Sequence[float], inner: bool = False) -> None:
        super().__init__()
        f = torch.tensor(taps, dtype=torch.float32, device="cpu")
        kernel = f.outer(f) / f.sum() ** 2 * (4 if mode == "up" else 1)
        self.kernel = nn.Buffer(kernel[None, None], persistent=False)
        self.mode = mode
        self.padding = 0 if inner else (len(taps) - 1) // 2
        self.box = list(taps) == [1, 1]

    def forward(self, x: Tensor) -> Tensor:
        if self.box:  # the usual one: GPUs are slow at convolutions of each channel alone
            return F.interpolate(x, scale_factor=2) if self.mode == "up" else F.avg_pool2d(x, 2)
        channels = x.shape[1]
        convolve = F.conv_transpose2d if self.mode == "up" else F.conv2d
        kernel = self.kernel.expand(channels, -1, -1, -1)
        return convolve(x, kernel, stride=2, padding=self.padding, groups=channels)


class ResampledConv(nn.Conv2d):
    """A convolution behind a resampling."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, mode: Mode, taps: Sequence[float]) -> None:
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2)
        self.resample = Resample(mode, taps)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.resample(x))


class HalvingConv(nn.Conv2d):
    """A convolution before a halving, which also sees what the convolution makes of the padding around the image."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, taps: Sequence[float]) -> None:
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2 + (len(taps) - 1) // 2)
        self.resample = Resample("down", taps, inner=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(super().forward(x))


def split_heads(qkv: Tensor, heads: int) -> Tensor:
    """(B, 3 C, H, W), whose channels are ordered by head, channel and (q, k, v), to (3, B, heads, H W, C / heads)."""
    return qkv.reshape(len(qkv), heads, -1, 3, qkv[0, 0].numel()).permute(3, 0, 1, 4, 2).contiguous()


def attend(qkv: Tensor, like: Tensor) -> Tensor:
    """Attention of all pixels to all, (3, B, heads, H W, C / heads) -> the shape of `like`, (B, C, H, W)."""
    q, k, v = qkv
    return F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(like.shape)


@dataclass(frozen=True)
class Style:
    """What tells the blocks of DDPM++ and NCSN++ from those of ADM, whose own the defaults are.

    `heads` of attention, or one for every `head_channels`; the embedding scales and shifts, or is only added, before
    the second convolution; `projected` means that a resampled shortcut has a convolution at equal widths too.
    """

    emb_channels: int
    heads: int | None = None
    head_channels: int = 64
    group_channels: int = 4  # in a group of normalisation, at least
    eps: float = 1e-5
    scales: bool = True
    projected: bool = False
    gain: float = 1.0  # of each sum of a branch and its shortcut
    taps: tuple[float, ...] = (1.0, 1.0)

    def norm(self, channels: int) -> nn.GroupNorm:
        return nn.GroupNorm(min(32, channels // self.group_channels), channels, self.eps)


def shared(channels: int, heads: int) -> int:
    """The number of heads; raises ValueError where channels would be left over."""
    if heads and channels % heads:
        raise ValueError(f"{channels} channels cannot be shared by {heads} heads of attention")
    return heads


class Block(nn.Module):
    """A residual block with resampling and attention where its place has them: (x, emb) -> x."""

    def __init__(self, place: Place, style: Style) -> None:
        super().__init__()
        i, o, mode = place.in_channels, place.out_channels, place.mode
        self.scales, self.gain = style.scales, style.gain
        self.norm0 = style.norm(i)
        self.conv0 = nn.Conv2d(i, o, 3, padding=1) if mode == "keep" else ResampledConv(i, o, 3, mode, style.taps)
        self.affine = nn.Linear(style.emb_channels, 2 * o if style.scales else o)
        self.norm1 = style.norm(o)
        self.conv1 = nn.Conv2d(o, o, 3, padding=1)
        self.skip = _shortcut(place, style)
        self.heads = shared(o, style.heads or o // style.head_channels) if place.attention else 0
        if self.heads:
            self.norm2 = style.norm(o)
            self.qkv = nn.Conv2d(o, 3 * o, 1)
            self.proj = nn.Conv2d(o, o, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv0(F.silu(self.norm0(x)))
        told = self.affine(emb)[:, :, None, None]
        if self.scales:
            scale, shift = told.chunk(2, 1)
            h = torch.addcmul(shift, self.norm1(h), scale + 1)
        else:
            h = self.norm1(h + told)
        x = (self.skip(x) + self.conv1(F.silu(h))) * self.gain
        if self.heads:
            x = (x + self.proj(attend(split_heads(self.qkv(self.norm2(x)), self.heads), x))) * self.gain
        return x


def _shortcut(place: Place, style: Style) -> nn.Module:
    """What brings a block's input to its output's shape."""
    i, o, mode = place.in_channels, place.out_channels, place.mode
    if mode == "keep":
        return nn.Identity() if i == o else nn.Conv2d(i, o, 1)
    return ResampledConv(i, o, 1, mode, style.taps) if i != o or style.projected else Resample(mode, style.taps)


def one_hot(y: Tensor, classes: int) -> Tensor:
    """Classes y (B,) to a 1 each among zeros, (B, classes), bool; label `classes`, no class, to zeros alone."""
    return y[:, None] == torch.arange(classes, device=y.device)


def exact(values: Tensor) -> Tensor:
    """The bits of float32 numbers as int32, which a network keeps when it is cast to half precision."""
    return values.to(torch.float32).view(torch.int32)


def inexact(bits: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers behind `exact`, in `dtype`."""
    return bits.view(torch.float32).to(dtype)


class Positional(nn.Module):
    """The angles t f_k of noise levels t (B,) at frequencies falling from 1 to 1/10000, (B, n/2), in t's dtype.

    The frequencies are float32 as networks were trained with: at t = 999 rounding one otherwise shows.  With `endpoint`
    the last is 1/10000 itself.
    """

    def __init__(self, channels: int, endpoint: bool = False) -> None:
        super().__init__()
        k = torch.arange(channels // 2, dtype=torch.float32, device="cpu")
        self.freqs = nn.Buffer(exact((1 / 10000) ** (k / (channels // 2 - endpoint))), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        return t[:, None] * inexact(self.freqs, t.dtype)


class Fourier(nn.Module):
    """The angles 2 pi t f_k of noise levels t (B,) at frequencies that were drawn once, (B, n/2), in t's dtype."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.freqs = nn.Buffer(exact(torch.empty(channels // 2)))

    def forward(self, t: Tensor) -> Tensor:
        return t[:, None] * (2 * math.pi * inexact(self.freqs, torch.float32)).to(t.dtype)
