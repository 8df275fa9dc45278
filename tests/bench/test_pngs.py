"""Samples as PNG files are the bytes that metrics saw."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench import cli
from bench.checkpoints.digits import real
from bench.images import FolderImages
from bench.scoring import context_of, metrics_of, score
from bench.store import Store

SWEEP = ["--solvers", "ddim,dpmpp_2m(grid=karras)", "--nfe", "5", "--samples", "40", "--metrics", "frechet_pixels"]


def fewstep(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fewstep", "sweep", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def test_other_tools_see_what_the_metrics_saw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text("checkpoint: digits\nlatency: false\n")
    out, pngs = tmp_path / "out", tmp_path / "pngs"
    assert fewstep(monkeypatch, str(sweep), *SWEEP, "--out", str(out), "--png", str(pngs)) == 0
    for i, image in enumerate(real()):
        (tmp_path / "real").mkdir(exist_ok=True)
        Image.fromarray(image[0]).save(tmp_path / "real" / f"{i:05}.png")
    records = {record["key"][:8]: record for record in Store(out).records()}
    folders = sorted(pngs.iterdir())
    assert len(folders) == len(records) == 2
    for folder in folders:
        record = records[folder.name.rpartition("-")[2]]
        images = FolderImages(folder)
        (kept,) = images.batches(40)
        np.testing.assert_array_equal(kept[:32], Store(out).sidecar(record["key"])["images"])
        context = context_of("pngs", (1, 8, 8), [str(tmp_path / "real")], None, torch.device("cpu"))
        (value,) = score(metrics_of(["frechet_pixels"], images, context), images)
        assert value.value == pytest.approx(record["metrics"][0]["value"], rel=1e-12)
        assert (value.n, value.reference["n"]) == (40, 1437)


def test_vectors_are_no_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fewstep(monkeypatch, "--checkpoint", "gmm", "--solvers", "ddim", "--png", "pngs", "--out", "out") == 2
    assert "gmm makes no images" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_not_ours_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("theirs").mkdir(mode=0o500)
    assert fewstep(monkeypatch, *SWEEP, "--png", "theirs/pngs", "--out", "out") == 2
    assert capsys.readouterr().err == "fewstep: --png theirs/pngs is not writable\n"
    assert not Path("out").exists()
