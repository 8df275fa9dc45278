"""A checkpoint as the teacher of students, and the clean samples that they are shown."""

import copy
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import solvers
from bench.checkpoints import Checkpoint, Task
from bench.errors import UsageError
from bench.files import write_atomically
from bench.images import open_images
from distill.batch import DATA, TRAINING, Conditions, Data, Draws
from distill.method import Teacher
from distill.steps import usual_grid

TIME_EMBEDDINGS = ("time_embedding", "map_layer1", "emb_noise", "noise")  # by their last names, in networks known here
FEATURES = ("mid_block", "enc", "transformer_blocks", "blocks")  # of stacks the last child
CALLS = 20  # of the teacher, for a sample of its own to learn from


def teacher_of(checkpoint: Checkpoint, task: Task, device: torch.device, data: Data | None = None) -> Teacher:
    """The checkpoint's network, frozen, on a device; without `data`, as a student's weights are opened by, it has none.

    Raises UsageError for a network without weights to train.
    """
    network = checkpoint.network
    if not any(True for _ in network.parameters()):
        raise UsageError(f"{checkpoint.name} has no weights that a student could begin with")

    def conditions(draws: Draws) -> dict[str, Tensor]:
        streams = TRAINING + draws.turn  # of whom samples are, whatever a loss draws
        return checkpoint.conditions(task, draws.seed, draws.first, draws.count, draws.device, streams)

    def no_data(draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        raise NotImplementedError("this teacher shows no data")

    frozen = copy.deepcopy(network).requires_grad_(False).to(device)
    denoiser = solvers.Denoiser(frozen, checkpoint.schedule, checkpoint.predicts, _guidance(checkpoint, device, data))
    places = (_place(network, names) for names in (TIME_EMBEDDINGS, FEATURES))
    return Teacher(denoiser, checkpoint.shape, data or no_data, conditions, *places)


def _guidance(checkpoint: Checkpoint, device: torch.device, data: Data | None) -> solvers.Guidance | None:
    """What guidance leads away from; None for a network that cannot do without its conditions, or has none."""
    null: dict[str, int | Tensor | None] = {}
    if checkpoint.classes and checkpoint.knows_no_class:
        null["y"] = len(checkpoint.classes)
    if checkpoint.text and not checkpoint.scale_as_input:
        null |= checkpoint.text.encode([""], device)
    if not null:
        return None
    told = data(Draws(0, 0, 0, 1, device))[1] if data else {}
    return solvers.Guidance(1.0, dict.fromkeys(told) | null)


def _place(network: nn.Module, names: tuple[str, ...]) -> str:
    """The first module with one of these last names, of a stack its last child; empty where there is none."""
    for wanted in names:
        for name, module in network.named_modules():
            if name.rpartition(".")[2] == wanted:
                stack = isinstance(module, nn.ModuleList | nn.ModuleDict)
                return f"{name}.{[child for child, _ in module.named_children()][-1]}" if stack else name
    return ""


@dataclass(frozen=True)
class Pool:
    """Clean samples x0 (N, *shape), shown again from the first after the last; sample i has the conditions of i."""

    x0: Tensor
    conditions: Conditions

    def __call__(self, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """The samples of these draws, N of which hold a whole number of batches."""
        first = draws.first % len(self.x0)
        told = self.conditions(Draws(draws.seed, 0, first, draws.count, draws.device))
        return self.x0[first : first + draws.count].to(draws.device), told


def images_in(text: str, checkpoint: Checkpoint) -> Data:
    """The images of a folder, parquet or array as data; raises UsageError where they do not fit the checkpoint."""
    if checkpoint.classes or checkpoint.text:
        raise UsageError(f"--data {text}: {checkpoint.name} is told what to make, which images alone do not say")
    if checkpoint.decode or checkpoint.kind != "image":
        raise UsageError(f"--data {text}: {checkpoint.name} is no network of images as they are")
    images = open_images(text)
    if tuple(images.shape) != checkpoint.shape:
        raise UsageError(f"--data {text}: images of shape {images.shape}; {checkpoint.name} makes {checkpoint.shape}")
    pixels = torch.from_numpy(np.concatenate(list(images.batches(1000)))).float() / 127.5 - 1
    return lambda draws: (pixels[torch.from_numpy(draws.integers(DATA, len(pixels)))].to(draws.device), {})


def own_samples(path: Path, teacher: Teacher, checkpoint: Checkpoint, task: Task, seed: int, count: int) -> Pool:
    """So many samples of the teacher's own, drawn in 20 calls each, or read from `path`, where they are kept."""
    if not path.exists():
        grid = usual_grid(checkpoint.schedule)
        plan = solvers.plan("dpmpp_2m" if grid == "karras" else "flow_heun", checkpoint.schedule, CALLS, grid=grid)
        parts = []
        for first in range(0, count, checkpoint.batch):
            size = min(checkpoint.batch, count - first)
            draws = Draws(seed, 0, first, size, next(teacher.network.parameters()).device)
            x_T = checkpoint.latents(seed, first, size, plan.times[0], TRAINING).to(draws.device, torch.float32)
            parts.append(solvers.sample(plan, teacher.denoiser, x_T, cond=teacher.conditions(draws)).cpu())
        write_atomically(path, lambda file: torch.save(torch.cat(parts), file))
    x0 = torch.load(path, weights_only=True)
    if tuple(x0.shape) != (count, *checkpoint.shape):
        size = " x ".join(map(str, (count, *checkpoint.shape)))
        raise UsageError(f"{path} does not hold {size} numbers: delete it, and the samples are drawn again")
    return Pool(x0, teacher.conditions)


def pool_of(batch: int, asked: int) -> int:
    """So many samples, in whole batches."""
    return batch * math.ceil(asked / batch)
