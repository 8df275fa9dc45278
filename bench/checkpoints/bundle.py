"""A bundle: a folder with weights and a card (card.json) that carries their digest.

Weights lie in model.safetensors or, where that were too large for a repository of code, in several files of at most
16 MB, model-00001-of-00003.safetensors and so on.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from bench.errors import UsageError
from bench.files import read_small, sha256, write_atomically, write_json

BUNDLED = Path(__file__).parent / "weights"
SHARD = 16_000_000  # bytes a file at most, unless a single tensor has more
WEIGHTS = "model*.safetensors"
HEADER = 250_000  # of those, left for what a file says of its tensors


@dataclass(frozen=True)
class Bundle:
    """Weights, the card that describes them, and their SHA-256."""

    tensors: Mapping[str, Tensor]
    card: Mapping[str, Any]
    digest: str


def write_bundle(folder: Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    """Write weights and card; the card gets the weights' digest."""
    from huggingface_hub import split_torch_state_dict_into_shards  # slow to load, and reading needs none of it

    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    split = split_torch_state_dict_into_shards(
        whole, filename_pattern="model{suffix}.safetensors", max_shard_size=SHARD - HEADER
    )
    shards = {
        name: save({tensor: whole[tensor] for tensor in held}) for name, held in split.filename_to_tensors.items()
    }
    for name, data in shards.items():
        write_atomically(folder / name, partial(_write, data))
    for other in {path.name for path in folder.glob(WEIGHTS)} - shards.keys():  # of weights that were cut otherwise
        (folder / other).unlink()
    write_json(folder / "card.json", {**card, "sha256": sha256(b"".join(shards[name] for name in sorted(shards)))})


def _write(data: bytes, file: BinaryIO) -> None:
    file.write(data)


def read_card(folder: Path) -> dict[str, Any]:
    """The card alone; raises UsageError when the folder holds none."""
    try:
        card = json.loads(read_small(folder / "card.json"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{folder} is not a checkpoint folder: no readable card.json in it") from error
    if not isinstance(card, dict) or not {"checkpoint", "sha256"} <= card.keys():
        raise UsageError(f"{folder}/card.json is no checkpoint card: it lacks 'checkpoint' or 'sha256'")
    return card


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle back; raises UsageError when a file is missing or the weights are not the card's."""
    card, weights = read_card(folder), folder / "model.safetensors"
    try:
        shards = [path.read_bytes() for path in sorted(folder.glob(WEIGHTS)) or [weights]]
    except OSError as error:
        raise UsageError(f"cannot read {weights}: {error.strerror}") from error
    digest = sha256(b"".join(shards))
    if digest != card["sha256"]:
        raise UsageError(
            f"{weights} is corrupted: its SHA-256 is {digest[:12]}…, the card says {str(card['sha256'])[:12]}…"
        )
    try:
        return Bundle({name: tensor for data in shards for name, tensor in load(data).items()}, card, digest)
    except SafetensorError as error:
        raise UsageError(f"{weights} is not a safetensors file: {error}") from error
