"""`fewstep train`: the shipped weights made again, everything checked first."""

import os
import shlex
from dataclasses import dataclass, fields, replace
from pathlib import Path

from bench.checkpoints import training as short
from bench.checkpoints.cifar10 import training as long
from bench.checkpoints.cifar10.data import photographs
from bench.distilling import PRECISIONS
from bench.errors import UsageError
from bench.progress import stderr_console, training_progress
from bench.runner import find_device
from solvers import did_you_mean

STATE = "state.pt"


@dataclass(frozen=True)
class Order:
    """What is to be trained; None is the recipe's own."""

    name: str
    out: Path
    steps: int | None = None
    batch: int | None = None
    seed: int = 0
    precision: str = "fp32"
    device: str = "cpu"

    @property
    def command(self) -> str:
        """What trains the same again, wherever it is to lie."""
        given = [(f.name, getattr(self, f.name), f.default) for f in fields(self) if f.name not in ("name", "out")]
        words = [(f"--{name}", str(value)) for name, value, usual in given if value != usual]
        return shlex.join(["fewstep", "train", self.name, *(word for pair in words for word in pair)])


def run(order: Order) -> None:
    """Train, or go on, to the end; raises UsageError before anything is written, UnknownNameError for the name."""
    names = [*short.RECIPES, *long.MAKERS]
    if order.name not in names:
        raise did_you_mean("recipe", order.name, names)
    resumes = order.name in long.MAKERS
    usual = long.MAKERS[order.name].recipe if resumes else short.RECIPES[order.name][1]
    _check(order, resumes)
    given = {k: v for k in ("steps", "batch") if (v := getattr(order, k)) is not None}
    recipe = replace(usual, seed=order.seed, **given)
    device = find_device(order.device)
    if resumes:
        photographs("train")
    _make(order.out, resumes)
    with training_progress(stderr_console(), order.name, recipe.steps) as on_step:
        if resumes:
            long.train(order.name, order.out, recipe, device, PRECISIONS[order.precision], order.command, on_step)
        else:
            short.RECIPES[order.name][0](order.out, recipe, on_step)


def _check(order: Order, resumes: bool) -> None:
    for name in ("steps", "batch"):
        if (given := getattr(order, name)) is not None and given < 1:
            raise UsageError(f"--{name} {given}: give at least 1")
    if not 0 <= order.seed < 2**31:
        raise UsageError(f"--seed {order.seed}: give a whole number from 0 to 2^31 - 1")
    if order.precision not in PRECISIONS:
        raise UsageError(f"--precision {order.precision}: give {' or '.join(PRECISIONS)}")
    if not resumes and (order.precision != "fp32" or find_device(order.device).type != "cpu"):
        raise UsageError(f"{order.name} is trained on the CPU in fp32: give neither --device nor --precision")


def _make(out: Path, resumes: bool) -> None:
    """The folder, new, empty, or one that a training is in that goes on."""
    goes_on = resumes and (out / STATE).is_file()
    if os.path.lexists(out) and (not out.is_dir() or (any(out.iterdir()) and not goes_on)):
        raise UsageError(f"--out {out} is there already: give a new or empty folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {out} cannot be made: {error.strerror}") from error
