"""Photographs: their file, the trainings that use it, and the checkpoint that comes out."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import solvers
from bench import cli
from bench.checkpoints import Task, load
from bench.checkpoints import bundle as bundles
from bench.checkpoints.bundle import read_bundle
from bench.checkpoints.cifar10 import training
from bench.checkpoints.cifar10.data import WHERE, photographs
from bench.checkpoints.cifar10.data import training as shown
from bench.errors import UsageError
from bench.training import Order, run
from distill.batch import Draws
from tests.bench.photographs import write_photographs

SMALL = {"model_channels": 32, "channel_mult": (1, 1), "num_blocks": 1, "attn_resolutions": (16,)}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = write_photographs(tmp_path / "photographs.parquet")
    monkeypatch.setenv(WHERE, str(path))
    monkeypatch.setattr(training, "UNET", SMALL)
    photographs.cache_clear()
    yield path
    photographs.cache_clear()


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a command says before it exits with 2."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fewstep", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    said = capsys.readouterr()
    assert (stopped.value.code, said.out, said.err.count("\n")) == (2, "", 1)
    return said.err


def trained(out: Path, name: str = "cifar10_jpeg", steps: int = 6) -> dict[str, torch.Tensor]:
    run(Order(name, out, steps=steps, batch=4))
    return dict(read_bundle(out).tensors)


def test_bytes_and_labels_are_the_files(file: Path) -> None:
    images, labels = photographs("test")
    rows = [row for row in pq.read_table(file).to_pylist() if row["split"] == "test"]
    assert labels.tolist() == [row["label"] for row in rows]
    for image, row in zip(images, rows, strict=True):
        pixels = np.asarray(Image.open(BytesIO(row["jpeg"]))).transpose(2, 0, 1)
        np.testing.assert_array_equal(image.numpy(), pixels)


def test_what_students_are_shown_is_a_function_of_the_sample(file: Path) -> None:
    x, told = shown(Draws(0, 0, 0, 40))
    again, _ = shown(Draws(0, 0, 30, 10))
    assert torch.equal(x[30:], again)
    images, labels = photographs("train")
    known = images.float() / 127.5 - 1
    plain, mirrored = ((x[:, None] - each).abs().amax((2, 3, 4)).min(1) for each in (known, known.flip(3)))
    assert torch.equal(plain.values.minimum(mirrored.values), torch.zeros(40))
    assert 10 < (plain.values == 0).sum() < 30
    assert torch.equal(told["y"], labels[torch.where(plain.values == 0, plain.indices, mirrored.indices)])


@pytest.mark.parametrize(
    ("given", "said"),
    [(None, "is not set"), ("nowhere.parquet", "no such file"), ("text", "no parquet file"), ("grey", "32x32 RGB")],
)
def test_another_file_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: str | None, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("no parquet")
    image = BytesIO()
    Image.new("L", (32, 32)).save(image, "JPEG")
    rows = [{"split": "train", "label": 0, "jpeg": image.getvalue()}] * 2
    pq.write_table(pa.Table.from_pylist(rows), "grey")
    monkeypatch.setenv(WHERE, given) if given else monkeypatch.delenv(WHERE, raising=False)
    photographs.cache_clear()
    assert said in refused(capsys, "train", "cifar10_jpeg", "--out", "out")
    assert not Path("out").exists()


@pytest.mark.parametrize("name", training.MAKERS)
def test_a_training_that_was_cut_off_goes_on_to_the_same_weights(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    whole = trained(tmp_path / "whole", name)
    monkeypatch.setattr("bench.checkpoints.resumable.SAVED_EVERY", 0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.training.training_progress", cut_off_after(3))
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "cut", name)
    assert not (tmp_path / "cut" / "card.json").exists()
    gone_on = trained(tmp_path / "cut", name)
    assert all(torch.equal(whole[key], gone_on[key]) for key in whole)
    cards = [json.loads((tmp_path / folder / "card.json").read_text()) for folder in ("whole", "cut")]
    assert cards[0]["curve"] == cards[1]["curve"]
    assert len(cards[0]["curve"]) == 6


def cut_off_after(steps: int):  # type: ignore[no-untyped-def]
    from contextlib import contextmanager

    def on_step(step: int, loss: float) -> None:
        if step == steps:
            raise KeyboardInterrupt

    @contextmanager
    def progress(*given: object) -> Iterator[object]:
        yield on_step

    return progress


def test_a_state_of_another_recipe_is_refused(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path / "out", steps=2)
    common = ("train", "cifar10_jpeg", "--out", str(tmp_path / "out"))
    assert "go on with that" in refused(capsys, *common, "--steps", "3", "--batch", "4")
    (tmp_path / "out" / "state.pt").write_bytes(b"nothing")
    assert "no state of this training" in refused(capsys, *common, "--steps", "2", "--batch", "4")


def test_training_lowers_the_loss(file: Path, tmp_path: Path) -> None:
    run(Order("cifar10_jpeg", tmp_path / "out", steps=60, batch=8))
    curve = json.loads((tmp_path / "out" / "card.json").read_text())["curve"]
    losses = [loss for _, loss in curve]
    assert np.mean(losses[-10:]) < 0.96 * np.mean(losses[:10])


def test_the_checkpoint_opens_from_several_files_and_denoises(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "SHARD", 400_000)
    tensors = trained(tmp_path / "out")
    shards = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 1
    assert shards[0].startswith("model-00001-of-")
    assert max(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")) <= 400_000
    checkpoint = load(str(tmp_path / "out"))
    assert checkpoint.network.state_dict().keys() == tensors.keys()
    plan = solvers.plan("dpmpp_2m", checkpoint.schedule, 3)
    denoiser = checkpoint.denoiser(Task(), torch.device("cpu"), torch.float32)
    x_T = checkpoint.latents(0, 0, 2, plan.times[0]).float()
    x = solvers.sample(plan, denoiser, x_T, cond={"y": torch.tensor([0, 9])})
    assert x.shape == (2, 3, 32, 32)
    assert x.isfinite().all()
    (tmp_path / "out" / shards[1]).unlink()
    with pytest.raises(UsageError, match="corrupted"):
        load(str(tmp_path / "out"))


def test_weights_cut_anew_leave_no_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {f"t{i}": torch.full((1000,), float(i)) for i in range(8)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundles, "SHARD", bundles.HEADER + 9000)
        bundles.write_bundle(tmp_path, tensors, {"checkpoint": "none"})
    assert len(list(tmp_path.glob("*.safetensors"))) == 4
    assert read_bundle(tmp_path).tensors.keys() == tensors.keys()
    bundles.write_bundle(tmp_path, tensors, {"checkpoint": "none"})
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    assert torch.equal(read_bundle(tmp_path).tensors["t7"], tensors["t7"])


def test_recipes_of_the_cpu_take_no_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "fp32" in refused(capsys, "train", "digits", "--out", str(tmp_path / "x"), "--precision", "bf16")
    assert "recipe" in refused(capsys, "train", "cifar", "--out", str(tmp_path / "x"))
    command = replace(Order("cifar10_jpeg", tmp_path), steps=7, device="cuda").command
    assert command == "fewstep train cifar10_jpeg --steps 7 --device cuda"
