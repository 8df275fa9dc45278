"""The files of a diffusers pipeline: which there must be, which of them are read, and their digest."""

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from logging import CRITICAL
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.errors import UsageError
from bench.files import sha256
from bench.metrics.weights import digest_of, in_short, read_state
from solvers import Option

INDEX, SCHEDULER = "model_index.json", "scheduler_config.json"
FORMS = {  # suffix -> what diffusers and transformers call the file; nothing is unpickled where there are safetensors
    "safetensors": ("diffusion_pytorch_model", "model"),
    "bin": ("diffusion_pytorch_model", "pytorch_model"),
}
POINTER = b"version https://git-lfs"  # what git leaves in the place of a large file that it did not bring


@dataclass(frozen=True)
class Part:
    """A component with weights: where it lies, of which class it is, its config, and the files that are read."""

    folder: Path
    class_name: str
    config: Mapping[str, Any]
    weights: tuple[Path, ...]
    variant: str | None


@dataclass(frozen=True)
class Folder:
    """A local folder with a pipeline (model_index.json), or with a model alone (config.json).

    `variant` is the one to read where a component has it, such as "fp16".
    """

    path: Path
    variant: str | None = None

    @cached_property
    def index(self) -> Mapping[str, Any]:
        """model_index.json; empty for a model alone."""
        return read_json(self.path / INDEX) if (self.path / INDEX).is_file() else {}

    @property
    def class_name(self) -> str:
        """The pipeline's class, or the model's; raises UsageError when the folder holds neither."""
        alone = self.path / "config.json"
        found = (self.index or (read_json(alone) if alone.is_file() else {})).get("_class_name")
        if not isinstance(found, str):
            raise UsageError(f"{self.path} is no pipeline: it has neither a {INDEX} nor a model's config.json")
        return found

    def place(self, name: str) -> Path:
        """A component's folder: the one of its name or, as in the oldest pipelines, the pipeline's own."""
        alone = (self.path / "config.json").is_file() and not (self.path / name).is_dir()
        return self.path if alone else self.path / name

    def has(self, name: str) -> bool:
        """Whether the pipeline says that it has this component: an optional one may be null."""
        entry = self.index.get(name)
        return isinstance(entry, list) and len(entry) == 2 and None not in entry

    def scheduler(self) -> Mapping[str, Any]:
        """The scheduler's config; raises UsageError when it is not there."""
        file = self.place("scheduler") / SCHEDULER
        if not file.is_file():
            raise UsageError(f"{self.path} lacks its scheduler: there is no {file}")
        return read_json(file)

    def part(self, name: str, *classes: str) -> Part:
        """The component of this name, of one of these classes; raises UsageError when it is missing or another."""
        folder = self.place(name)
        if self.index and not self.has(name):
            raise UsageError(f"{self.path / INDEX} names no {name}: a {self.class_name} has one")
        if not (folder / "config.json").is_file():
            raise UsageError(f"{self.path} lacks its {name}: there is no {folder / 'config.json'}")
        config = read_json(folder / "config.json")
        class_name = str(self.index[name][1] if self.index else config.get("_class_name"))
        if class_name not in classes:
            raise UsageError(f"{self.path}: its {name} is a {class_name}, and what runs here is {' or '.join(classes)}")
        return Part(folder, class_name, config, *weights_in(folder, self.variant))

    def digest(self, names: Collection[str], **decisive: Option | None) -> str:
        """SHA-256 of what these components hold, and of options that decide the samples; of contents, never paths."""
        parts = {name: self._contents(name) for name in names}
        return sha256(json.dumps({"parts": parts, **decisive}, sort_keys=True).encode())

    def _contents(self, name: str) -> list[Any]:
        """Of a model its config and its weights' digests, of a scheduler its config, of a tokenizer all its files."""
        folder = self.place(name)
        if name == "scheduler":
            return [_plain(self.scheduler())]
        if (folder / "config.json").is_file():
            weights, _ = weights_in(folder, self.variant)
            return [_plain(read_json(folder / "config.json")), *map(digest_of, weights)]
        return [[path.name, digest_of(path)] for path in sorted(folder.iterdir()) if path.is_file()]


def open_folder(path: Path, variant: str | None = None) -> Folder:
    """The folder; raises UsageError when it holds no pipeline, or a variant is asked for that nothing in it has."""
    folder = Folder(path, variant)
    folder.class_name  # noqa: B018  # raises
    if variant and not any(path.rglob(f"*.{variant}.*")):
        raise UsageError(f"{path} holds no file of the variant {variant!r}")
    return folder


def weights_in(folder: Path, variant: str | None) -> tuple[tuple[Path, ...], str | None]:
    """The weight files that are read in a component's folder, and the variant they are of; raises UsageError."""
    for which in dict.fromkeys((variant, None)):  # a component without the variant has one form for all
        tag = f".{which}" if which else ""
        for suffix, stem in ((s, stem) for s, stems in FORMS.items() for stem in stems):
            whole, index = folder / f"{stem}{tag}.{suffix}", folder / f"{stem}.{suffix}.index{tag}.json"
            if whole.is_file():
                return (whole,), which
            if index.is_file():
                return _shards(index), which
    names = [path.name.split(".") for suffix in FORMS for path in folder.glob(f"*.{suffix}")]
    others = sorted({parts[1].split("-")[0] for parts in names if len(parts) == 3})
    hint = f": give variant={' or '.join(others)}" if others and not variant else ""
    raise UsageError(f"{folder} holds no weights that are read, *.safetensors or *.bin{hint}")


def load_model(part: Part) -> nn.Module:
    """The model of diffusers in float32, frozen; raises UsageError unless the files hold its weights and no others."""
    import diffusers  # seconds to import

    check_weights(part.weights)
    try:
        with quiet():
            model, report = getattr(diffusers, part.class_name).from_pretrained(
                part.folder, local_files_only=True, use_safetensors=part.weights[0].suffix == ".safetensors",
                variant=part.variant, torch_dtype=torch.float32, output_loading_info=True,
            )  # fmt: skip
    except Exception as error:  # a config may be wrong in any way
        why = in_short(error).partition(". If you want")[0]
        raise UsageError(f"{part.folder} is no {part.class_name} that can be loaded: {why}") from error
    for wrong in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if keys := sorted(map(str, report[wrong])):
            what = wrong.replace("_keys", "")
            raise UsageError(f"{part.folder}: its weights are not its config's: {len(keys)} {what}, such as {keys[0]}")
    frozen: nn.Module = model.eval().requires_grad_(False)
    return frozen


def check_weights(files: Collection[Path]) -> None:
    """Raises UsageError naming a file that is broken, or asks to import something; nothing in it is executed."""
    for path in files:
        with path.open("rb") as file:
            if file.read(len(POINTER)) == POINTER:
                raise UsageError(f"{path} is a Git LFS pointer, not the weights: `git lfs pull` brings them")
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, "pt"):
                    pass
            except (SafetensorError, OSError) as error:
                raise UsageError(f"{path} is no whole safetensors file: {in_short(error)}") from error
        else:
            read_state(path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors in a file, by name: safetensors, or a state dict that imports nothing; raises UsageError."""
    check_weights([path])
    return load_file(path) if path.suffix == ".safetensors" else read_state(path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file; raises UsageError."""
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is no JSON: {in_short(error)}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path} holds a {type(found).__name__}, not a JSON object")
    return found


@contextmanager
def quiet() -> Iterator[None]:
    """Without what diffusers and transformers log, errors too, and their progress bars: what they raise says it."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    levels = [(module, module.get_verbosity()) for module in (of_diffusers, of_transformers)]
    for module, _ in levels:
        module.set_verbosity(CRITICAL)
        module.disable_progress_bar()
    try:
        yield
    finally:
        for module, level in levels:
            module.set_verbosity(level)
            module.enable_progress_bar()


def _shards(index: Path) -> tuple[Path, ...]:
    """The files that an index of shards names, all of them beside it; raises UsageError."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(n, str) for n in names.values()):
        raise UsageError(f"{index} is no index of weights: it has no weight_map")
    for name in sorted(set(names.values())):
        if Path(name).name != name or not (index.parent / name).is_file():
            raise UsageError(f"{index} names {name}, which is not beside it")
    return tuple(index.parent / name for name in sorted(set(names.values())))


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without what tells of its making: versions and paths."""
    return {k: v for k, v in config.items() if k == "_class_name" or not k.startswith("_")}
