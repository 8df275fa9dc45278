"""A few small images that differ, and what metrics need to look at them."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

import solvers
from bench.checkpoints import Checkpoint, Task
from bench.metrics import Context
from bench.metrics.gaussian import Gaussian, Moments, frechet

Bytes = NDArray[np.uint8]
CPU = torch.device("cpu")


def pictures(seed: int, n: int, shape: tuple[int, int, int]) -> Bytes:
    """Slopes with noise over them, (n, C, H, W): flat, steep, dark and bright ones."""
    rng = np.random.default_rng(seed)
    channels, height, width = shape
    down, across = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)
    slope, level = rng.normal(0, 60, (2, n, channels, 1, 1)), rng.uniform(20, 235, (n, channels, 1, 1))
    noise = rng.normal(size=(n, channels, height, width)) * rng.uniform(0, 80, (n, 1, 1, 1))
    return (level + slope[0] * down + slope[1] * across + noise).clip(0, 255).astype(np.uint8)


def context(weights: Path | None, images: Bytes, cache: Path = Path("nowhere")) -> Context:
    """For samples of the shape of these images, which are also what samples are compared with."""
    checkpoint = Checkpoint(
        "pictures", "", nn.Identity(), solvers.EDM(), "data", images.shape[1:], (1.0,), "image", (), {}, lambda: images
    )
    return Context(checkpoint, 0, Task(), cache, CPU, weights=weights)


def save(images: Bytes, folder: Path) -> Path:
    """A PNG file each; grey images as grey files."""
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(folder / f"{i:03}.png")
    return folder


def projection(width: int, onto: int) -> NDArray[np.float64]:
    """A fixed random map of all features onto fewer than there are images.

    With fewer images than features every covariance is singular, and the square root of the eigenvalues that rounding
    put in the place of zeros, 2000 times 1e-8, is all that two correct implementations would disagree about.
    """
    return np.random.default_rng(1).normal(size=(width, onto)) / width**0.5


def distance(a: Iterable[NDArray[np.float64]], b: Iterable[NDArray[np.float64]]) -> float:
    """Our distance of features from features."""
    m = Moments.of(np.asarray(b))
    return frechet(np.asarray(a), Gaussian(m.mean, m.covariance, {}))[0]
