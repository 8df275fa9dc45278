"""Fewstep gives what diffusers' schedulers and torch-fidelity's formula give: the comparison, run on digits."""

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import solvers
from bench.checkpoints import Checkpoint
from bench.checkpoints.cifar10.teacher import network_of

FOLDER = Path(__file__).parents[2] / "results" / "cifar10_jpeg"
USUAL = ("digits", "--device", "cpu", "--samples", "200", "--batch", "100", "--rounds", "3", "--nfe", "4,5")
# Of the samples' root mean square; measured: 4e-6 at most, and 1.4e-4 for Heun, which divides by the last sigma.
CLOSE, CLOSE_HEUN = 3e-5, 5e-4


def run(*given: str) -> "subprocess.CompletedProcess[str]":
    command, one_thread = [sys.executable, str(FOLDER / "peers.py"), *given], os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=one_thread, timeout=120)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peers") / "there"
    done = run(*USUAL, "--out", str(folder))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def rows(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((out / "peers.json").read_text())["rows"]
    return found


def test_samples_agree_to_rounding(rows: list[dict[str, Any]]) -> None:
    assert [row["calls"] for row in rows] == [4, 5, 4, 5, 4, 5, 3, 5, 4, 5, 4, 5]  # Heun's are odd
    for row in rows:
        heun = row["settings"]["pair"]["solver"] == "heun"
        assert 0 < row["rms"] < row["largest"] < (CLOSE_HEUN if heun else CLOSE)
        assert row["grid"] < 3e-6


def test_numbers_agree_and_are_torch_fidelitys(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert abs(row["difference"]["value"]) < 1e-2 * row["fewstep"]["se"]
        assert row["difference"]["se"] < 5e-2 * row["fewstep"]["se"]
        for side in ("diffusers", "fewstep"):
            assert row[side]["torch_fidelity"] == pytest.approx(row[side]["value"], rel=1e-7)
            assert row["ms"][side] > 0


def test_what_is_there_is_not_made_again(out: Path) -> None:
    before, table = (out / "peers.json").stat().st_mtime_ns, (out / "peers.md").read_text()
    done = run(*USUAL, "--out", str(out))
    assert (done.returncode, done.stdout.split(" rows made")[0]) == (0, "0"), done.stderr
    assert (out / "peers.json").stat().st_mtime_ns == before
    assert (out / "peers.md").read_text() == table
    assert str(out) not in table + (out / "peers.json").read_text()


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    done = run("gmm", "--out", str(tmp_path / "none"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "peers: checkpoint gmm: its network is not preconditioned as EDM's are\n"


@pytest.mark.parametrize("given", [["--batch", "3"], ["--nfe", "5,x"], ["--samples", "-1"], ["--rho", "7"]])
def test_a_bad_option_is_one_line(given: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "argv", ["peers.py", "digits", "--out", "none", *given])
    with pytest.raises(SystemExit, match="2"):
        import_module("peers").main()
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert given[1].removeprefix("5,") in said.err


def test_a_network_of_edms_own_is_compared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    peers = import_module("peers_rows")
    torch.manual_seed(0)
    network = network_of({"model_channels": 16, "channel_mult": (1, 1), "num_blocks": 1, "attn_resolutions": ()}).eval()
    c = Checkpoint("tiny", "", network, solvers.EDM(), "data", (3, 32, 32), (0.1,) * 10)
    cond = {"y": torch.tensor([3, 7])}
    for pair in peers.PAIRS:
        plan, scheduler = pair.plan(c, 4), pair.ready(c, 4, torch.device("cpu"))
        x = c.latents(0, 0, 2, plan.times[0]).float()
        theirs = peers.trajectory(pair, scheduler, network, x, cond)
        with torch.no_grad():
            ours = solvers.sample(plan, solvers.Denoiser(network, c.schedule, c.predicts), x, cond=cond)
        assert (theirs - ours).abs().max() < CLOSE_HEUN * ours.square().mean().sqrt(), pair
