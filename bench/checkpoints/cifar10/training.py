"""How the weights for photographs are made: `fewstep train cifar10_jpeg` and `cifar10_jpeg_features`, on a GPU or not.

Both go on where they were interrupted, from <out>/state.pt.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from bench.checkpoints.bundle import write_bundle
from bench.checkpoints.cards import write_readme
from bench.checkpoints.cifar10.data import CLASSES, NAME, photographs
from bench.checkpoints.cifar10.teacher import UNET, network_of
from bench.checkpoints.edm.layers import Block
from bench.checkpoints.resumable import OnStep, StepLoss, Training
from bench.environment import environment
from bench.metrics.cifar10_features import PhotoClassifier
from distill.denoising import DenoisingLoss
from distill.trainer import Recipe, initialise

DENOISER = Recipe(steps=12_000, batch=512, lr=1e-3, ema=0.9995, warmup=1000, clip=1.0)
CLASSIFIER = Recipe(steps=3900, batch=256, lr=4e-3, ema=0.995, weight_decay=0.05, warmup=200)
LABEL_DROPOUT = 0.1
SHIFT = 2  # pixels that photographs are moved by at most, for the classifier
SMOOTHING = 0.1  # of its labels


@dataclass(frozen=True)
class Maker:
    """What one bundle takes: its recipe, the network to begin with, and how its loss and its card come about."""

    recipe: Recipe
    network: Callable[[], nn.Module]
    loss: Callable[[nn.Module, Recipe, torch.device], StepLoss]
    about: Callable[[nn.Module, torch.device], Mapping[str, Any]]


def denoiser() -> nn.Module:
    """A U-Net whose branches, and whose output, are zero: drawn otherwise by the trainer's rule."""
    network = network_of(UNET)
    for module in network.modules():
        if isinstance(module, Block):
            nn.init.zeros_(module.conv1.weight)
            if module.heads:
                nn.init.zeros_(module.proj.weight)
    nn.init.zeros_(network.get_submodule("model.dec.32x32_aux_conv").weight)
    return network


def denoising(network: nn.Module, recipe: Recipe, device: torch.device) -> StepLoss:
    """EDM's loss on photographs, half of them mirrored, a tenth without their label."""
    images, labels = (each.to(device) for each in photographs("train"))
    objective, D = DenoisingLoss(), _compiled(network, device)

    def loss(_: nn.Module, generator: torch.Generator) -> Tensor:
        i = torch.randint(len(images), (recipe.batch,), generator=generator, device=device)
        dropped = torch.rand(recipe.batch, generator=generator, device=device) < LABEL_DROPOUT
        y = torch.where(dropped, CLASSES, labels[i])
        return objective(D, _mirrored(images[i], generator), {"y": y}, generator)

    return loss


def classifying(network: nn.Module, recipe: Recipe, device: torch.device) -> StepLoss:
    """Cross entropy on photographs, half of them mirrored, all of them moved a little."""
    images, labels = (each.to(device) for each in photographs("train"))
    run = _compiled(network, device)

    def loss(_: nn.Module, generator: torch.Generator) -> Tensor:
        i = torch.randint(len(images), (recipe.batch,), generator=generator, device=device)
        x = F.pad(_mirrored(images[i], generator), (SHIFT,) * 4, mode="reflect")
        right, down = torch.randint(2 * SHIFT + 1, (2, recipe.batch, 1), generator=generator, device=device)
        places = torch.arange(images.shape[-1], device=device)
        rows, columns = (down + places)[:, None, :, None], (right + places)[:, None, None, :]
        each, channels = (torch.arange(n, device=device) for n in x.shape[:2])
        moved = x[each[:, None, None, None], channels[None, :, None, None], rows, columns]
        logits = run(moved.contiguous(memory_format=torch.channels_last))
        return F.cross_entropy(logits.float(), labels[i], label_smoothing=SMOOTHING)

    return loss


def accuracy(network: nn.Module, device: torch.device) -> dict[str, Any]:
    """Of the classifier on the test split: (share of 10,000)."""
    images, labels = photographs("test")
    with torch.no_grad():
        found = [network(part.to(device).float() / 127.5 - 1).argmax(1).cpu() for part in images.split(500)]
    return {"quality": {"test_accuracy": (torch.cat(found) == labels).double().mean().item()}}


MAKERS = {
    "cifar10_jpeg": Maker(DENOISER, denoiser, denoising, lambda network, device: {"unet": UNET}),
    "cifar10_jpeg_features": Maker(CLASSIFIER, PhotoClassifier, classifying, accuracy),
}


def train(
    name: str, out: Path, recipe: Recipe, device: torch.device, precision: str, command: str, on_step: OnStep
) -> None:
    """Train, or go on, to the end, and write the bundle with its card, which names the command.

    Raises UsageError, and FloatingPointError, naming the step, when the loss stops being finite.
    """
    maker = MAKERS[name]
    network = maker.network()
    initialise(network, recipe.seed)
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=precision)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    training = Training(network, recipe, accelerator, out / "state.pt")
    averaged = training.run(maker.loss(training.network, recipe, device), on_step)
    half = {k: v.half() if v.is_floating_point() else v for k, v in averaged.state_dict().items()}
    averaged.load_state_dict(half)  # what is judged is what is shipped
    made = environment(device)
    card = {
        "checkpoint": name,
        "data": NAME,
        "recipe": asdict(recipe),
        "mixed_precision": precision,
        "seconds": round(training.seconds, 1),
        "images_a_second": round(recipe.steps * recipe.batch / training.seconds, 1),
        "parameters": sum(p.numel() for p in averaged.parameters()),
        **maker.about(averaged, device),
        "curve": training.curve,
        "made_with": {key: made[key] for key in ("versions", "commit", "device", "threads")},
    }
    write_bundle(out, half, card)
    write_readme(out, name, command)


def _mirrored(images: Tensor, generator: torch.Generator) -> Tensor:
    """Bytes (B, 3, H, W) in [-1, 1], each mirrored or not."""
    x = images.to(torch.float32, memory_format=torch.channels_last) / 127.5 - 1
    mirrored = torch.rand(len(x), generator=generator, device=x.device) < 0.5
    return torch.where(mirrored[:, None, None, None], x.flip(3), x)


def _compiled(network: nn.Module, device: torch.device) -> nn.Module:
    """The network as a GPU runs it faster; a CPU gains little, and would wait for a compiler."""
    return torch.compile(network) if device.type == "cuda" else network  # type: ignore[return-value]
