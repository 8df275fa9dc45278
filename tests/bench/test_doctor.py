"""`fewstep doctor`: what it says is so, and it is one screen."""

import shutil
from pathlib import Path

import psutil
import pytest
import torch
from huggingface_hub import constants

from bench.checkpoints.manifest import Entry, Source, sources
from bench.doctor import fits, places, print_examination, runs

GIB = 2**30


def sized(name: str, parameters: float | None) -> Entry:
    source = Source(url="https://lab.org/x.pkl", licence="ours")
    return Entry(name=name, about="", source=source, loader="edm", resolution=8, parameters=parameters)


def test_what_fits_is_a_matter_of_bytes() -> None:
    found = [sized("small", GIB), sized("middle", 3 * GIB), sized("large", 9 * GIB), sized("unknown", None)]
    assert fits(found, 10 * GIB) == [
        "1 in float32", "in fp16 or bf16 only middle (6 GiB in fp16)", "not large (18 GiB in fp16)",
        "1 of unknown size",
    ]  # fmt: skip
    assert fits(found[:1], 4 * GIB) == ["in fp16 or bf16 only small (2 GiB in fp16)"]
    assert fits(found[:1], 5.1 * GIB) == ["1 in float32"]


def test_the_cpu_is_described_as_it_is() -> None:
    cpu = places()[0]
    assert cpu.memory == psutil.virtual_memory().total
    assert 0 < cpu.free <= cpu.memory
    told = runs(torch.device("cpu"))
    assert "fp64, fp32, fp16, bf16" in told
    assert "tf32" not in told
    assert "cuda_graph" not in told
    assert ("compile" in told) == bool(shutil.which("g++") or shutil.which("clang++"))


def test_one_screen_with_what_is_here(
    no_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "a" / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    source = sources("edm-cifar10-32x32-uncond-vp")[0]
    source.home.parent.mkdir(parents=True)
    source.home.write_bytes(b"weights")
    before = sorted(tmp_path.rglob("*"))
    print_examination()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    assert f"torch {torch.__version__.partition('+')[0]}" in text
    assert "does not answer: what is not here cannot be pulled" in text
    assert "edm-cifar10-32x32-uncond-vp (213 MiB in float32)" in text
    assert "digits, gmm" in text
    assert "none of the published networks" in text
    assert sorted(tmp_path.rglob("*")) == before


def test_the_command_is_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    from tests.bench.test_cli import fewstep

    assert fewstep(monkeypatch, "doctor") == 0
    assert capsys.readouterr().out.startswith("fewstep ")
