"""A bundle: a folder with weights (model.safetensors) and a card (card.json) that carries their digest."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from bench.errors import UsageError
from bench.files import read_small, sha256, write_atomically, write_json

BUNDLED = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Bundle:
    """Weights, the card that describes them, and their SHA-256."""

    tensors: Mapping[str, Tensor]
    card: Mapping[str, Any]
    digest: str


def write_bundle(folder: Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    """Write weights and card; the card gets the weights' digest."""
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    write_atomically(folder / "model.safetensors", lambda file: file.write(data))
    write_json(folder / "card.json", {**card, "sha256": sha256(data)})


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
        data = weights.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {weights}: {error.strerror}") from error
    digest = sha256(data)
    if digest != card["sha256"]:
        raise UsageError(
            f"{weights} is corrupted: its SHA-256 is {digest[:12]}…, the card says {str(card['sha256'])[:12]}…"
        )
    try:
        return Bundle(load(data), card, digest)
    except SafetensorError as error:
        raise UsageError(f"{weights} is not a safetensors file: {error}") from error
