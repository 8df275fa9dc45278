"""A repository's files by their names: which of them a pipeline is loaded from, and whether those are all there."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

INDEX = "model_index.json"
WEIGHTS = (  # safe ones where there are any, whole or in numbered parts; a variant has one more dot in its name
    r"(diffusion_pytorch_model|model)(-\d+-of-\d+)?\.safetensors",
    r"(diffusion_pytorch_model|pytorch_model)(-\d+-of-\d+)?\.bin",
)
SMALL = (".json", ".txt", ".model")  # configs and tokenisers
UNUSED = {"safety_checker", "feature_extractor", "image_encoder"}  # of a pipeline, and nothing to its samples


def wanted(names: Iterable[str], index: Mapping[str, Any]) -> list[str]:
    """Of a repository's files, those that its pipeline, or the one model in it, is loaded from.

    `index` is its model_index.json; weights are taken once, in full precision.
    """
    parts = {name for name, value in index.items() if isinstance(value, list) and None not in value} - UNUSED
    folders: dict[PurePosixPath, list[PurePosixPath]] = {}
    for path in map(PurePosixPath, names):
        if len(path.parts) == 1 or (len(path.parts) == 2 and path.parts[0] in parts):
            folders.setdefault(path.parent, []).append(path)
    found: list[PurePosixPath] = []
    for files in folders.values():
        forms = ([path for path in files if re.fullmatch(form, path.name)] for form in WEIGHTS)
        weights = next(filter(None, forms), [])
        indices = {f"{re.sub('-[0-9]+-of-[0-9]+', '', path.name)}.index.json" for path in weights}
        found += weights
        found += [p for p in files if p.suffix in SMALL and (".index" not in p.name or p.name in indices)]
    return sorted(map(str, found))


def complete(names: Iterable[str]) -> bool:
    """Whether among these files each model, which is what has a config.json, has weights, and all parts of them."""
    paths = [PurePosixPath(name) for name in names]
    models = {path.parent for path in paths if path.name == "config.json"} - {PurePosixPath(name) for name in UNUSED}
    weights = [path for path in paths if any(re.fullmatch(form, path.name) for form in WEIGHTS)]
    parts = {(path.parent, found[1]) for path in weights if (found := re.search(r"-of-(\d+)\.", path.name))}
    whole = all(sum(p.parent == folder and f"-of-{n}." in p.name for p in weights) >= int(n) for folder, n in parts)
    return bool(models) and models <= {path.parent for path in weights} and whole


def files_in(folder: Path) -> list[str]:
    """The files in a folder and its subfolders, by their names in it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def index_of(folder: Path) -> dict[str, Any]:
    """The model_index.json in a folder; empty where there is none that can be read, which its loader will say."""
    try:
        found = json.loads((folder / INDEX).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
