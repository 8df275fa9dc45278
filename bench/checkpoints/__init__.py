"""Checkpoints by name, or by the file or folder that holds one."""

import os
from collections.abc import Mapping
from pathlib import Path

from bench.checkpoints import manifest
from bench.checkpoints.base import Checkpoint, Guide, Task
from bench.checkpoints.bundle import BUNDLED, read_bundle, read_card
from bench.checkpoints.plugin import opened
from bench.errors import UsageError
from bench.words import parse
from solvers import Option, did_you_mean
from solvers.registry import Registry

CHECKPOINTS = Registry(
    "checkpoint",
    "fewstep.checkpoints",
    {"digits": "bench.checkpoints.digits:load", "gmm": "bench.checkpoints.gmm:load"},
)
NOT_SHIPPED = {"cifar10_jpeg": "bench.checkpoints.cifar10.teacher:load"}  # kinds whose weights are not here
KINDS = Registry("kind of checkpoint", "fewstep.checkpoints", CHECKPOINTS.builtin | NOT_SHIPPED)
HUB = "hub:"
LOADERS = {  # by what is in a folder, or by how a file's name ends
    "model_index.json": "bench.checkpoints.pipelines:load",
    "config.json": "bench.checkpoints.pipelines:load",
    ".pkl": "bench.checkpoints.edm.load:load",
    ".pt": "bench.checkpoints.adm:load",
}
KNOWN = "a folder of diffusers or of `fewstep train`, a .pkl of EDM or a .pt of guided-diffusion"


def load(text: str) -> Checkpoint:
    """The checkpoint that `text` names, `name` or `name(option=value, ...)`; raises UsageError, UnknownNameError.

    A name is, in this order: one that comes with the package, one of the manifest, `hub:owner/name`, a path, a plug-in.
    """
    name, options = parse("checkpoint", text)
    if name in CHECKPOINTS.builtin:
        return _of_bundle(BUNDLED / name, options)
    if entry := manifest.entry(name):
        return _of_manifest(entry, options)
    if name.startswith(HUB):
        return _of_hub(name.removeprefix(HUB), options)
    if os.path.exists(name):  # which, unlike Path's, has an answer for names that no file can have
        return open_path(Path(name), options)
    if ":" not in name and name not in CHECKPOINTS.names():
        if "/" in name or "." in name:
            raise UsageError(f"checkpoint {name} is not there: give {KNOWN}")
        raise did_you_mean("checkpoint", name, [*CHECKPOINTS.names(), *(e.name for e in manifest.entries())])
    return opened(name, CHECKPOINTS.get(name), options)


def open_path(path: Path, options: Mapping[str, Option], name: str = "") -> Checkpoint:
    """The checkpoint in a file or folder, called `name` or as the path is; raises UsageError."""
    found = [kind for kind in LOADERS if (path / kind).is_file() or (path.is_file() and path.suffix == kind)]
    if found:
        usual = path.resolve().name if path.is_dir() else path.stem  # a folder's name may have dots
        loaded: Checkpoint = Registry("loader", "", LOADERS).get(found[0])(path, options, name or usual)
        return loaded
    if path.is_dir() and (path / "card.json").exists():
        return _of_bundle(path, options)
    raise UsageError(f"{path} holds no checkpoint: give {KNOWN}")


def _of_bundle(folder: Path, options: Mapping[str, Option]) -> Checkpoint:
    if options:
        raise UsageError(f"checkpoint {folder.name} takes no options: {', '.join(options)}")
    kind = str(read_card(folder)["checkpoint"])
    if kind == "student":
        raise UsageError(f"{folder} holds a student, which is swept among solvers, on its teacher: --solvers {folder}")
    try:
        found: Checkpoint = KINDS.get(kind)(read_bundle(folder))
    except (KeyError, TypeError, RuntimeError) as error:
        raise UsageError(
            f"{folder} does not hold a checkpoint of kind {kind!r}: {str(error).splitlines()[0]}"
        ) from error
    return found


def _of_manifest(entry: manifest.Entry, options: Mapping[str, Option]) -> Checkpoint:
    """A checkpoint of the manifest, which must be what it says there."""
    path = entry.source.find()
    if path is None:
        raise manifest.not_here(entry.name, [entry.source])
    found = open_path(path, {**entry.options, **options}, entry.name)
    if len(found.classes) != entry.classes:
        raise UsageError(
            f"{path} has {len(found.classes)} classes, and {entry.name} has {entry.classes}: pull it again"
        )
    if "resolution" not in options and found.image_shape[-1] != entry.resolution:
        sizes = f"images of {found.image_shape[-1]} pixels, and {entry.name} of {entry.resolution}"
        raise UsageError(f"{path} makes {sizes}: pull it again")
    return found


def _of_hub(repository: str, options: Mapping[str, Option]) -> Checkpoint:
    """A pipeline of the hub: from this machine's cache, or else brought there."""
    from bench.checkpoints.hub import found

    own = {k: v for k, v in options.items() if k != "revision"}
    return open_path(found(repository, options), own, repository.rpartition("/")[2])


__all__ = ["CHECKPOINTS", "Checkpoint", "Guide", "Task", "load", "open_path"]
