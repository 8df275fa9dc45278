"""Networks of diffusers on pixels: a UNet2DModel alone, in a DDPM or DDIM pipeline, or as a consistency model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.checkpoints.base import Checkpoint
from bench.checkpoints.pipelines import unet
from bench.checkpoints.pipelines.files import INDEX, SCHEDULER, Folder, load_model, open_folder
from bench.checkpoints.pipelines.options import COMMON, check_options, word
from bench.checkpoints.pipelines.schedule import read_schedule
from bench.errors import UsageError
from solvers import Option


def load(path: Path, options: Mapping[str, Option], name: str) -> Checkpoint:
    """The network in a folder, under the scheduler beside it; raises UsageError, UnknownNameError.

    A model alone that has no scheduler_config.json needs the option `betas`, a beta_schedule of diffusers; `resolution`
    must be its own.
    """
    check_options(name, options, COMMON | {"classes": int, "betas": str})
    folder, betas = open_folder(path, word(options, "variant")), word(options, "betas")
    part, scheduler = folder.part("unet", unet.UNET), _scheduler(folder, betas)
    schedule, predicts = read_schedule(scheduler, path / SCHEDULER, word(options, "prediction"))
    h, w = unet.side(part)
    if not h == w == options.get("resolution", h):
        raise UsageError(f"{path}: resolution={options.get('resolution')}, and its images are of {h} x {w} pixels")
    classes, null = unet.classes(part, options)
    network = unet.adapt(load_model(part), schedule, scheduler, path)
    return Checkpoint(
        name=name,
        digest=folder.digest(
            ["unet"] if betas else ["unet", "scheduler"], predicts=predicts, betas=betas, classes=len(classes)
        ),
        network=network,
        schedule=schedule,
        predicts=predicts,
        shape=(int(part.config.get("in_channels", 3)), h, w),
        classes=classes,
        card=unet.about(folder, network, scheduler),
        knows_no_class=null,
    )


def _scheduler(folder: Folder, betas: str | None) -> Mapping[str, Any]:
    """The scheduler's config, or the one that `betas` makes; raises UsageError for neither, and for both."""
    file = folder.place("scheduler") / SCHEDULER
    there = file.is_file() or (folder.path / INDEX).is_file()
    if there and betas is None:
        return folder.scheduler()
    if there:
        raise UsageError(f"{folder.path}: betas={betas!r} is given, and {file} has its own")
    if betas is None:
        raise UsageError(f"{folder.path} has no {SCHEDULER}: give betas=linear, scaled_linear or squaredcos_cap_v2")
    return {"_class_name": "DDPMScheduler", "beta_schedule": betas}
