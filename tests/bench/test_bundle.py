"""Bundles of weights and cards: written, read back, and refused when they are not whole."""

import json
from pathlib import Path

import pytest
import torch

from bench.checkpoints import load
from bench.checkpoints.bundle import BUNDLED, read_bundle, read_card, write_bundle
from bench.errors import UsageError
from bench.files import sha256

TENSORS = {"a": torch.randn(3, 4).T, "half": torch.ones(2, dtype=torch.float16), "n": torch.arange(5)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "made", TENSORS, {"checkpoint": "gmm", "data": "none", "quality": {"x": 0.5}})
    return tmp_path / "made"


def refusal(folder: Path) -> str:
    """The message with which a bundle is refused; it is one line."""
    with pytest.raises(UsageError) as caught:
        read_bundle(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_bundle_reads_back_as_it_was_written(folder: Path) -> None:
    bundle = read_bundle(folder)
    assert bundle.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert bundle.tensors[name].dtype == tensor.dtype
        assert torch.equal(bundle.tensors[name], tensor)
    assert bundle.digest == sha256((folder / "model.safetensors").read_bytes())
    assert bundle.card == {"checkpoint": "gmm", "data": "none", "quality": {"x": 0.5}, "sha256": bundle.digest}
    assert bundle.card == read_card(folder)


@pytest.mark.parametrize("place", [0, 9, 100, -1])
def test_a_flipped_byte_is_noticed(folder: Path, place: int) -> None:
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[place] ^= 1
    weights.write_bytes(data)
    message = refusal(folder)
    assert str(weights) in message
    assert "SHA-256" in message
    assert sha256(bytes(data))[:12] in message
    assert read_card(folder)["sha256"][:12] in message


def test_weights_that_are_no_safetensors_are_refused_even_with_their_digest(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"rubbish")
    (folder / "card.json").write_text(json.dumps({"checkpoint": "gmm", "sha256": sha256(b"rubbish")}))
    assert "not a safetensors file" in refusal(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "card.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert name in refusal(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere") in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize("text", [b"{", b"", b"\xff\xfe"])
def test_a_card_that_is_not_json_is_refused(folder: Path, text: bytes) -> None:
    (folder / "card.json").write_bytes(text)
    assert "no readable card.json" in refusal(folder)


@pytest.mark.parametrize("card", [{}, {"checkpoint": "gmm"}, {"sha256": "0"}, [], "card", None])
def test_a_card_without_its_keys_is_refused(folder: Path, card: object) -> None:
    (folder / "card.json").write_text(json.dumps(card))
    assert "lacks 'checkpoint' or 'sha256'" in refusal(folder)


def test_a_copied_folder_is_the_checkpoint_it_was(tmp_path: Path) -> None:
    shipped = read_bundle(BUNDLED / "gmm")
    write_bundle(tmp_path / "copy", shipped.tensors, shipped.card)
    copy, original = load(str(tmp_path / "copy")), load("gmm")
    assert (copy.name, copy.digest) == (original.name, original.digest)
    x, t = torch.randn(2, *copy.shape), torch.full((2,), 0.5)
    assert torch.equal(copy.network(x, t), original.network(x, t))
