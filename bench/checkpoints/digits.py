"""The digits checkpoint: a denoiser of scikit-learn's 8x8 handwritten digits, and those digits."""

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bench.checkpoints.base import Checkpoint, quantise
from bench.checkpoints.bundle import Bundle
from bench.checkpoints.digits_net import CLASSES, SHAPE, DigitsMLP
from distill.batch import DATA, Draws
from distill.denoising import Preconditioned
from solvers.schedule import EDM

SIGMA_DATA = 0.75  # of the training pixels
SIZES = torch.tensor([0.15, 0.1, 0.15, 0.1, 0.1])  # rotation, log scale, shear, shifts (in half images): std
PLAIN = 0.5  # of the digits that students see are left as they are


@cache
def data() -> dict[str, tuple[Tensor, Tensor]]:
    """ "train" (1,437) and "heldout" (360): images (N, 1, 8, 8) in [-1, 1] and labels (N,), stratified by class."""
    from sklearn.datasets import load_digits  # a second to import, and sampling needs none of it
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    halves = train_test_split(digits.data, digits.target, test_size=0.2, stratify=digits.target, random_state=0)
    images = [torch.tensor(x / 8 - 1, dtype=torch.float32).reshape(-1, *SHAPE) for x in halves[:2]]
    labels = [torch.tensor(y) for y in halves[2:]]
    return {"train": (images[0], labels[0]), "heldout": (images[1], labels[1])}


def real(split: str = "train") -> NDArray[np.uint8]:
    """The real digits of a split as the bytes that metrics see, (N, 1, 8, 8)."""
    return quantise(data()[split][0])


def moved(x: Tensor, a: Tensor) -> Tensor:
    """Small affine maps of images (B, 1, 8, 8), told by five standard normal numbers each, (B, 5); 0 leaves alone."""
    turn, log_scale, shear, right, down = (a * SIZES).T
    c, s, scale = turn.cos(), turn.sin(), log_scale.exp()
    rows = [torch.stack([scale * c, scale * (shear - s), right], 1), torch.stack([scale * s, scale * c, down], 1)]
    places = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    image = F.grid_sample(x + 1, places, mode="bicubic", align_corners=False) - 1  # outside the image is black, -1
    return torch.where(a.any(1)[:, None, None, None], image.clamp(-1, 1), x)


def training(draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
    """What students are shown: training digits, half of them moved, and the network told how."""
    images, labels = data()["train"]
    i = torch.from_numpy(draws.integers(DATA, len(images)))
    a = draws.normal(DATA + 1, (5,)).cpu()
    a = torch.where(draws.normal(DATA + 2, (5,)).cpu() > 0, a, 0.0)
    a = torch.where(torch.from_numpy(draws.uniform(DATA + 3) < PLAIN)[:, None], 0.0, a)
    told = {"y": labels[i], "augment": a}
    return moved(images[i], a).to(draws.device), {k: v.to(draws.device) for k, v in told.items()}


def load(bundle: Bundle) -> Checkpoint:
    """The denoiser of a bundle, whose weights are stored in half precision."""
    network = Preconditioned(DigitsMLP(), SIGMA_DATA)
    network.load_state_dict({k: v.float() for k, v in bundle.tensors.items()})
    return Checkpoint(
        name="digits",
        digest=bundle.digest,
        network=network.eval().requires_grad_(False),
        schedule=EDM(),
        predicts="data",
        shape=SHAPE,
        classes=(1 / CLASSES,) * CLASSES,
        kind="image",
        metrics=("frechet_digits", "frechet_pixels", "trajectory"),
        card=bundle.card,
        real=real,
        training=training,
    )
