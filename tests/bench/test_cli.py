"""The command line in this process: what it prints, and that bad input is one line, exit code 2, nothing written."""

import sys
from pathlib import Path

import pytest

from bench import cli

CASES = {
    "--solvers dpmp_2m": "unknown solver 'dpmp_2m': did you mean 'dpmpp_2m'?",
    "--solvers nowhere.py:f": "unknown solver 'nowhere.py:f'",
    "--solvers dpmpp_2m(grid=karas)": "did you mean 'karras'?",
    "--solvers dpmpp_2m(order=3)": "has no option 'order': it has ",
    "--solvers dpmpp_2m(lower_order_final=sometimes)": "is none of never, below_10, below_15, always",
    "--solvers ddim(eta=2)": "must lie in [0, 1]",
    "--solvers ddim(eta=yes)": "eta='yes' is not a float",
    "--solvers ddim(": "not of the form",
    "--solvers ,": "solvers",
    "--checkpoint gm": "unknown checkpoint 'gm': did you mean 'gmm'?",
    "--checkpoint /": "holds no checkpoint: give a folder of diffusers",
    "--nfe 0": "nfe",
    "--nfe -3": "nfe",
    "--nfe 2.5": "'2.5' is not a whole number",
    "--nfe many": "'many' is not a whole number",
    "--solvers heun --nfe 6": "heun cannot spend 6 calls: it can spend 3, 5, 7",
    "--samples 0": "samples = 0",
    "--samples -5": "samples = -5",
    "--samples lots": "'lots' is not a whole number",
    "--seed -1": "seed = -1",
    "--device cuda:99": "CUDA devices",
    "--device tpu": "give auto, cpu, cuda or cuda:N",
    "--out afile": "is a file, not a folder",
    "--out afile/inside": "is a file, not a folder",
    "--out full": "holds other files",
    "--nonsense": "No such option",
    "missing.yaml": "cannot read missing.yaml",
    "typo.yaml": "typo.yaml, line 2: unknown key 'sample': did you mean 'samples'?",
    "value.yaml": "value.yaml, line 3: nfe",
    "broken.yaml": "broken.yaml, line 2: not YAML",
    "list.yaml": "must hold a mapping",
    "metric.yaml": "unknown metric 'frechet_digit': did you mean 'frechet_digits'?",
    "threads.yaml": "threads = 100000: this machine has",
    "other.yaml": "features 'pixels' need images, and gmm makes none",
}
FILES = {
    "afile": "",
    "full/notes.txt": "mine",
    "typo.yaml": "checkpoint: gmm\nsample: 5\n",
    "value.yaml": "checkpoint: gmm\nsamples: 5\nnfe: [5, 0]\n",
    "broken.yaml": "nfe: [5\nsamples: : 3\n",
    "list.yaml": "- 5\n",
    "threads.yaml": "checkpoint: gmm\nlatency: {threads: 100000}\n",
    "metric.yaml": "checkpoint: gmm\nmetrics: [frechet_digit]\n",
    "other.yaml": "checkpoint: gmm\nmetrics: [frechet_pixels]\n",
}


def fewstep(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of a command line."""
    monkeypatch.setattr(sys, "argv", ["fewstep", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the files that the cases name."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", ["sweep", "plan"])
@pytest.mark.parametrize(("arguments", "says"), CASES.items())
def test_bad_input_is_one_line_and_writes_nothing(
    command: str,
    arguments: str,
    says: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = sorted(folder.rglob("*"))
    checkpoint = [] if "checkpoint" in arguments or "yaml" in arguments else ["--checkpoint", "gmm"]
    assert fewstep(monkeypatch, command, *arguments.split(" "), *checkpoint) == 2
    out, err = capsys.readouterr()
    assert says in err
    assert err.startswith("fewstep: ")
    assert err.count("\n") == 1
    assert out == ""
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("command", ["status", "report"])
def test_a_folder_without_results_is_refused(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fewstep(monkeypatch, command, "full") == 2
    assert "full is not a results folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["ls", "solver"], ["train", "digit"], ["train", "gmm", "--out", "full"], ["swep"]]
)
def test_other_commands_refuse_bad_input(
    arguments: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fewstep(monkeypatch, *arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_corrupted_weights_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fewstep(monkeypatch, "train", "gmm", "--out", "mine") == 0
    weights = folder / "mine" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    capsys.readouterr()
    assert fewstep(monkeypatch, "sweep", "--checkpoint", "mine") == 2
    assert "mine/model.safetensors is corrupted: its SHA-256 is" in capsys.readouterr().err
    assert not (folder / "results").exists()


@pytest.mark.parametrize("what", ["solvers", "checkpoints", "metrics"])
def test_ls_lists_names_and_says_more_when_asked(
    what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fewstep(monkeypatch, "ls", what) == 0
    short = capsys.readouterr().out.splitlines()
    assert fewstep(monkeypatch, "ls", what, "--verbose") == 0
    long = capsys.readouterr().out
    assert short
    assert all(line.split()[0] in long for line in short)
    assert len(long.splitlines()) > len(short)


def test_plan_says_what_would_run_and_writes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(folder.rglob("*"))
    three = "ddim,heun,dpmpp_2m"
    assert fewstep(monkeypatch, "plan", "--checkpoint", "gmm", "--nfe", "5,6", "--solvers", three) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "skipped: heun cannot spend 6 calls" in out
    assert "5 cells to run on cpu" in out
    assert sorted(folder.rglob("*")) == before
