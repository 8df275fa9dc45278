"""How the shipped weights were made: `fewstep train NAME` runs these recipes again."""

import platform
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import solvers
from bench.checkpoints import digits
from bench.checkpoints.base import Task, quantise, unquantise
from bench.checkpoints.bundle import read_bundle, write_bundle
from bench.checkpoints.cards import write_readme
from bench.checkpoints.digits_net import NO_CLASS, DigitsMLP
from bench.checkpoints.gmm import GaussianMixture, bundle_tensors
from bench.metrics.digits_features import DigitsClassifier
from bench.metrics.gaussian import Gaussian, Moments, distance
from distill.denoising import DenoisingLoss, Preconditioned
from distill.trainer import Recipe, Trained, initialise, train

OnStep = Callable[[int, float], None]
DENOISER = Recipe(steps=9000, batch=256, lr=1e-3, weight_decay=0.01)
NOISE_LEVELS = DenoisingLoss(P_mean=-0.5, P_std=1.4)  # small images are decided at higher noise than EDM's
CLASSIFIER = Recipe(steps=2000, batch=128, lr=2e-3, weight_decay=0.01)
AUGMENT, LABEL_DROPOUT = 0.5, 0.1  # probability of each of the five augmentations; of losing the label


def augment(x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Small affine maps of images (B, 1, 8, 8), and the five numbers that say which, (B, 5); 0 where left alone."""
    a = torch.randn(len(x), 5, generator=generator) * (torch.rand(len(x), 5, generator=generator) < AUGMENT)
    return digits.moved(x, a), a


def train_digits(out: Path, recipe: Recipe = DENOISER, on_step: OnStep = lambda step, loss: None) -> None:
    """The denoiser: conditional on class and on augmentation, so that augmented digits are never what it samples."""
    images, labels = digits.data()["train"]
    network, objective = Preconditioned(DigitsMLP(), digits.SIGMA_DATA), NOISE_LEVELS
    initialise(network, recipe.seed)

    def loss(network: nn.Module, generator: torch.Generator) -> Tensor:
        i = torch.randint(len(images), (recipe.batch,), generator=generator)
        x0, a = augment(images[i], generator)
        dropped = torch.rand(recipe.batch, generator=generator) < LABEL_DROPOUT
        y = torch.where(dropped, NO_CLASS, labels[i])
        return objective(network, x0, {"y": y, "augment": a}, generator)

    trained = train(network, loss, recipe, on_step)
    tensors = {k: v.half() for k, v in trained.network.state_dict().items()}
    card = _card("digits", "scikit-learn's handwritten digits, 1,437 of 1,797 8x8 images", recipe, trained)
    write_bundle(out, tensors, card)
    write_bundle(out, tensors, card | {"quality": quality(digits.load(read_bundle(out)))})
    write_readme(out, "digits", "fewstep train digits")


def quality(checkpoint: Any) -> dict[str, float]:
    """Distances in pixel space of as many samples as there are training digits, at 200 calls, in their classes."""
    train_images, heldout = (unquantise(digits.real(split)).reshape(-1, 64) for split in ("train", "heldout"))
    labels = digits.data()["train"][1]
    plan = solvers.plan("ddim", checkpoint.schedule, 200)
    x_T = checkpoint.latents(1, 0, len(labels), plan.times[0]).float()
    denoiser = checkpoint.denoiser(Task(), torch.device("cpu"), torch.float32)
    samples = unquantise(quantise(solvers.sample(plan, denoiser, x_T, cond={"y": labels}))).reshape(-1, 64)
    reference = Moments.of(heldout)
    to_heldout = Gaussian(reference.mean, reference.covariance, {})
    floor, ours = (distance(Moments.of(x), to_heldout) for x in (train_images, samples))
    return {
        "frechet_pixels_train_to_heldout": floor,
        "frechet_pixels_samples_to_heldout": ours,
        "ratio": ours / floor,
        "nearest_training_digit_of_heldout_median": _nearest(heldout, train_images),
        "nearest_training_digit_of_samples_median": _nearest(samples, train_images),
    }


def _nearest(x: NDArray[np.float64], among: NDArray[np.float64]) -> float:
    return float(np.median(torch.cdist(torch.from_numpy(x), torch.from_numpy(among)).amin(1)))


def train_digits_features(out: Path, recipe: Recipe = CLASSIFIER, on_step: OnStep = lambda step, loss: None) -> None:
    """The classifier whose hidden layer is the feature space of `frechet_digits`."""
    images, labels = digits.data()["train"]
    network = DigitsClassifier()
    initialise(network, recipe.seed)

    def loss(network: nn.Module, generator: torch.Generator) -> Tensor:
        i = torch.randint(len(images), (recipe.batch,), generator=generator)
        return F.cross_entropy(network(augment(images[i], generator)[0]), labels[i])

    trained = train(network, loss, recipe, on_step)
    heldout, truth = digits.data()["heldout"]
    with torch.no_grad():
        accuracy = (trained.network(heldout).argmax(1) == truth).double().mean().item()
    card = _card("digits_features", "scikit-learn's handwritten digits, 1,437 of 1,797 8x8 images", recipe, trained)
    write_bundle(out, trained.network.state_dict(), card | {"quality": {"heldout_accuracy": accuracy}})
    write_readme(out, "digits_features", "fewstep train digits_features")


def train_gmm(out: Path, recipe: Recipe = Recipe(0, 0, 0), on_step: OnStep = lambda step, loss: None) -> None:  # noqa: B008
    """Nothing to train: the mixture of the golden recordings, drawn from its seed and frozen as a file."""
    mixture = GaussianMixture.random(recipe.seed)
    card = {"checkpoint": "gmm", "data": "an exact Gaussian mixture", "seed": recipe.seed, "classes": mixture.classes}
    write_bundle(out, bundle_tensors(mixture), card)
    write_readme(out, "gmm", "fewstep train gmm")


def _card(name: str, data: str, recipe: Recipe, trained: Trained) -> dict[str, Any]:
    return {
        "checkpoint": name,
        "data": data,
        "recipe": asdict(recipe),
        "final_loss": trained.final_loss,
        "seconds": round(trained.seconds, 1),
        "parameters": sum(p.numel() for p in trained.network.parameters()),
        "made_with": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        },
    }


RECIPES: dict[str, tuple[Callable[..., None], Recipe]] = {
    "digits": (train_digits, DENOISER),
    "digits_features": (train_digits_features, CLASSIFIER),
    "gmm": (train_gmm, Recipe(0, 0, 0)),
}
