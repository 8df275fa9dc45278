"""The digits denoiser: a residual multilayer perceptron over 8x8 pixels, and its training data."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.denoising import distinct

SHAPE = (1, 8, 8)
CLASSES = 10
NO_CLASS = CLASSES  # the label that stands for "no label", trained by label dropout
TABLE = 2 * (CLASSES + 1)  # samples, beyond which to embed each label is quicker than to embed each sample


class Block(nn.Module):
    """x + W2 silu(W1 norm(x) + W_emb emb), zero at initialisation.

    emb is (B, width), a row a sample, or with `which` (B,) of fewer rows, those of the samples.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, hidden)
        self.emb = nn.Linear(width, hidden, bias=False)
        self.outer = nn.Linear(hidden, width)
        nn.init.zeros_(self.outer.weight)

    def forward(self, x: Tensor, emb: Tensor, which: Tensor | None = None) -> Tensor:
        told = self.emb(emb) if which is None else F.embedding(which, self.emb(emb))
        return x + self.outer(F.silu(self.inner(self.norm(x)) + told))


class DigitsMLP(nn.Module):
    """F(x, c_noise, y, augment): pixels (B, 1, 8, 8), the rest (B,), (B,) and (B, 5) -> (B, 1, 8, 8).

    Samples at one noise level differ in what they are told by their labels alone: of many, each label is embedded once,
    which spares a third of the work.
    """

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
        angle = distinct(c_noise)[:, None] * self.frequencies
        emb = self.noise(torch.cat([angle.cos(), angle.sin()], 1).to(x.dtype))
        which = y if len(emb) == 1 and len(x) > TABLE and augment is None else None
        emb = emb + (self.label(y) if which is None else self.label.weight)
        if augment is not None:
            emb = emb + self.augment(augment)
        emb = F.silu(emb)
        h = self.enter(x.flatten(1))
        for block in self.blocks:
            h = block(h, emb, which)
        return self.leave(F.silu(self.norm(h))).reshape(x.shape)
