"""Metrics of images that exist already."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

import solvers
from bench.checkpoints import Checkpoint, Task
from bench.environment import environment
from bench.errors import UsageError
from bench.files import cache_folder, write_new
from bench.images import Images
from bench.metrics import Context, Metric, Value, make_metric, numbers_of
from bench.metrics.features import Images as OfBytes
from bench.metrics.reference import OfImages

SEED = 0  # of the trajectories that images do not have


def context_of(
    name: str, shape: tuple[int, ...], references: Sequence[str], weights: Path | None, device: torch.device
) -> Context:
    """What metrics need to know of images (C, H, W) that no checkpoint of ours made."""
    maker = Checkpoint(name, "", nn.Identity(), solvers.EDM(), "data", shape)
    return Context(maker, SEED, Task(), cache_folder(), device, references=tuple(references), weights=weights)


def metrics_of(texts: Sequence[str], images: Images, context: Context) -> list[Metric]:
    """These metrics, ready for the images; raises UsageError for what means nothing for images alone."""
    if not texts:
        raise UsageError("--metrics names none: give one or more, as `fewstep ls metrics` lists them")
    metrics = [make_metric(text, context) for text in texts]
    for text, metric in zip(texts, metrics, strict=True):
        if metric.of_ode or not isinstance(metric.extractor, OfBytes):
            raise UsageError(f"metric {text!r} is about a sampler's states, which images do not tell")
        metric.check(len(images))
    numbers_of(metrics)
    return metrics


def score(metrics: Sequence[Metric], images: Images) -> list[Value]:
    """The numbers of these metrics; features are kept on this machine, as those of references are."""
    values = []
    for metric in metrics:
        features = OfImages(images, metric.extractor, metric.features).features
        values += metric.compute(features, ())
    return values


def write_scores(path: Path, values: Sequence[Value], images: Images, device: torch.device) -> None:
    """The numbers, what they are of and where they were computed, as JSON; raises UsageError as `write_new`."""
    about = {"data": images.name, "n": len(images), "shape": images.shape, "sha256": images.digest}
    record = {"images": about, "metrics": [v.to_dict() for v in values], "environment": environment(device)}
    write_new(path, lambda file: file.write((json.dumps(record, indent=1, allow_nan=False) + "\n").encode()))
