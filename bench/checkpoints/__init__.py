"""Checkpoints by name, or by the folder that `fewstep train` wrote."""

from pathlib import Path

from bench.checkpoints.base import Checkpoint, Guide
from bench.checkpoints.bundle import BUNDLED, read_bundle, read_card
from bench.errors import UsageError
from solvers.registry import Registry

CHECKPOINTS = Registry(
    "checkpoint",
    "fewstep.checkpoints",
    {"digits": "bench.checkpoints.digits:load", "gmm": "bench.checkpoints.gmm:load"},
)


def load(name: str) -> Checkpoint:
    """The checkpoint called `name`, or the one in folder `name`; raises UsageError, UnknownNameError."""
    folder = Path(name)
    if name in CHECKPOINTS.builtin:
        folder = BUNDLED / name
    elif not folder.is_dir():
        found = CHECKPOINTS.get(name)()
        if not isinstance(found, Checkpoint):
            raise UsageError(f"checkpoint {name!r} gave a {type(found).__name__}, not a bench.checkpoints.Checkpoint")
        return found
    kind = str(read_card(folder)["checkpoint"])
    try:
        return CHECKPOINTS.get(kind)(read_bundle(folder))
    except (KeyError, TypeError, RuntimeError) as error:
        raise UsageError(
            f"{folder} does not hold a checkpoint of kind {kind!r}: {str(error).splitlines()[0]}"
        ) from error


__all__ = ["CHECKPOINTS", "Checkpoint", "Guide", "load"]
