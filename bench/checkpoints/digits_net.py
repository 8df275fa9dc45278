"""The digits denoiser: a residual multilayer perceptron over 8x8 pixels, and its training data."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHAPE = (1, 8, 8)
CLASSES = 10
NO_CLASS = CLASSES  # the label that stands for "no label", trained by label dropout


class Block(nn.Module):
    """x + W2 silu(W1 norm(x) + W_emb emb), zero at initialisation."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, hidden)
        self.emb = nn.Linear(width, hidden, bias=False)
        self.outer = nn.Linear(hidden, width)
        nn.init.zeros_(self.outer.weight)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return x + self.outer(F.silu(self.inner(self.norm(x)) + self.emb(emb)))


class DigitsMLP(nn.Module):
    """F(x, c_noise, y, augment): pixels (B, 1, 8, 8), the rest (B,), (B,) and (B, 5) -> (B, 1, 8, 8)."""

    def __init__(self, width: int = 320, hidden: int = 384, blocks: int = 4) -> None:
        super().__init__()
        d = math.prod(SHAPE)
        self.frequencies = nn.Buffer(2.0 ** torch.arange(-2, 6), persistent=False)
        self.noise = nn.Linear(2 * len(self.frequencies), width)
        self.label = nn.Embedding(CLASSES + 1, width)
        self.augment = nn.Linear(5, width, bias=False)
        self.enter = nn.Linear(d, width)
        self.blocks = nn.ModuleList(Block(width, hidden) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, d)
        nn.init.zeros_(self.leave.weight)

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor, augment: Tensor | None = None) -> Tensor:
        angle = c_noise[:, None] * self.frequencies
        emb = self.noise(torch.cat([angle.cos(), angle.sin()], 1).to(x.dtype)) + self.label(y)
        if augment is not None:
            emb = emb + self.augment(augment)
        emb = F.silu(emb)
        h = self.enter(x.flatten(1))
        for block in self.blocks:
            h = block(h, emb)
        return self.leave(F.silu(self.norm(h))).reshape(x.shape)
