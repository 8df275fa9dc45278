"""DDPM++ and NCSN++, the networks of Song et al. 2021, arXiv 2011.13456, as EDM's files hold them ("SongUNet")."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.checkpoints.edm.arguments import Blocks, Filter, Multiples, Size, UNetArguments
from bench.checkpoints.edm.layers import (
    Block,
    Fourier,
    HalvingConv,
    Positional,
    Style,
    decoder_places,
    encoder_places,
)


class SongArguments(UNetArguments):
    """DDPM++ by default; NCSN++ has Fourier features, a residual pyramid of the input and a wider filter."""

    model_channels: Size = 128
    channel_mult: Multiples = (1, 2, 2, 2)
    channel_mult_emb: Size = 4
    channel_mult_noise: Size = 1
    num_blocks: Blocks = 4
    attn_resolutions: tuple[int, ...] = (16,)
    embedding_type: Literal["positional", "fourier"] = "positional"
    encoder_type: Literal["standard", "residual"] = "standard"
    decoder_type: Literal["standard"] = "standard"
    resample_filter: Filter = (1, 1)


class SongUNet(nn.Module):
    """F(x, c_noise, labels): (B, C, R, R), (B,), (B, label_dim) or None -> (B, out_channels, R, R)."""

    def __init__(self, a: SongArguments, out_channels: int) -> None:
        super().__init__()
        noise, emb = a.model_channels * a.channel_mult_noise, a.model_channels * a.channel_mult_emb
        style = Style(emb, heads=1, eps=1e-6, scales=False, projected=True, gain=math.sqrt(0.5), taps=a.resample_filter)
        self.map_noise = Positional(noise, endpoint=True) if a.embedding_type == "positional" else Fourier(noise)
        if a.label_dim:
            self.map_label = nn.Linear(a.label_dim, noise)
        self.map_layer0 = nn.Linear(noise, emb)
        self.map_layer1 = nn.Linear(emb, emb)

        places = list(encoder_places(a, a.model_channels))
        size = a.img_resolution
        self.enc = nn.ModuleDict({f"{size}x{size}_conv": nn.Conv2d(a.img_channels, a.model_channels, 3, padding=1)})
        pyramid = a.img_channels
        for place in places:
            self.enc[place.name] = Block(place, style)
            if place.mode == "down" and a.encoder_type == "residual":
                halved = HalvingConv(pyramid, place.out_channels, 3, a.resample_filter)
                self.enc[place.name.replace("down", "aux_residual")] = halved
                pyramid = place.out_channels

        skips = [a.model_channels, *(place.out_channels for place in places)]
        ups = decoder_places(a, skips, attend_last=True)
        self.dec = nn.ModuleDict({place.name: Block(place, style) for place in ups})
        self.dec[f"{size}x{size}_aux_norm"] = style.norm(a.widths[0])
        self.dec[f"{size}x{size}_aux_conv"] = nn.Conv2d(a.widths[0], out_channels, 3, padding=1)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        emb = self._embedding(c_noise, labels)
        skips: list[Tensor] = []
        pyramid = x
        for name, block in self.enc.items():
            if "aux" in name:
                x = pyramid = skips[-1] = (x + block(pyramid)) * math.sqrt(0.5)
            else:
                x = block(x, emb) if isinstance(block, Block) else block(x)
                skips.append(x)
        *ups, (_, norm), (_, leave) = self.dec.items()
        for name, block in ups:
            x = block(torch.cat([x, skips.pop()], 1) if "block" in name else x, emb)
        return leave(F.silu(norm(x)))

    def _embedding(self, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        """What the blocks are told of noise level and class, (B, emb_channels)."""
        angles = self.map_noise(c_noise)
        emb = torch.cat([angles.sin(), angles.cos()], 1).to(self.map_layer0.weight.dtype)
        if labels is not None:
            emb = emb + self.map_label(labels * math.sqrt(labels.shape[1]))
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))
