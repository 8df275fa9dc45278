"""The digits checkpoint: a denoiser of scikit-learn's 8x8 handwritten digits, and those digits."""

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.checkpoints.base import Checkpoint, quantise
from bench.checkpoints.bundle import Bundle
from bench.checkpoints.digits_net import CLASSES, SHAPE, DigitsMLP
from distill.denoising import Preconditioned
from solvers.schedule import EDM

SIGMA_DATA = 0.75  # of the training pixels


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
    )
