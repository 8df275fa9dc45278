"""ADM, the network of Dhariwal & Nichol 2021, arXiv 2105.05233, as EDM's files hold it ("DhariwalUNet")."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.checkpoints.edm.arguments import Blocks, Multiples, Size, UNetArguments
from bench.checkpoints.edm.layers import Block, Positional, Style, decoder_places, encoder_places


class DhariwalArguments(UNetArguments):
    """EDM's own network for ImageNet 64x64 by default."""

    model_channels: Size = 192
    channel_mult: Multiples = (1, 2, 3, 4)
    channel_mult_emb: Size = 4
    num_blocks: Blocks = 3
    attn_resolutions: tuple[int, ...] = (32, 16, 8)


class DhariwalUNet(nn.Module):
    """F(x, c_noise, labels): (B, C, R, R), (B,), (B, label_dim) or None -> (B, out_channels, R, R)."""

    def __init__(self, a: DhariwalArguments, out_channels: int, style: Style | None = None) -> None:
        super().__init__()
        emb, first, size = a.model_channels * a.channel_mult_emb, a.widths[0], a.img_resolution
        style = style or Style(emb)
        self.map_noise = Positional(a.model_channels)
        self.map_layer0 = nn.Linear(a.model_channels, emb)
        self.map_layer1 = nn.Linear(emb, emb)
        if a.label_dim:
            self.map_label = nn.Linear(a.label_dim, emb, bias=False)

        places = list(encoder_places(a, first))
        self.enc = nn.ModuleDict({f"{size}x{size}_conv": nn.Conv2d(a.img_channels, first, 3, padding=1)})
        self.enc.update({place.name: Block(place, style) for place in places})
        ups = decoder_places(a, [first, *(place.out_channels for place in places)])
        self.dec = nn.ModuleDict({place.name: Block(place, style) for place in ups})
        self.out_norm = style.norm(first)
        self.out_conv = nn.Conv2d(first, out_channels, 3, padding=1)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        angles = self.map_noise(c_noise)
        emb = torch.cat([angles.cos(), angles.sin()], 1).to(self.map_layer0.weight.dtype)
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if labels is not None:
            emb = emb + self.map_label(labels)
        emb = F.silu(emb)

        skips: list[Tensor] = []
        for block in self.enc.values():
            x = block(x, emb) if isinstance(block, Block) else block(x)
            skips.append(x)
        for name, block in self.dec.items():
            x = block(torch.cat([x, skips.pop()], 1) if "block" in name else x, emb)
        return self.out_conv(F.silu(self.out_norm(x)))
