"""The gate catches what changed or got worse, names it, and is silent about what did not."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import Tensor
from typer.main import get_command

import solvers
from bench.checkpoints import digits
from bench.cli import app, main
from bench.gate.baseline import Baseline, read_baseline, read_recordings, write_baseline
from bench.gate.gate import Check, Gate, named
from bench.gate.update import update
from tests.chaos.nest import Nest

pytest_plugins = "pytester"

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
FEWSTEP = str(Path(sys.executable).parent / "fewstep")
SWEEP = """
checkpoint: digits
solvers: [dpmpp_2m, SOLVER]
nfe: [5]
samples: 200
metrics: [frechet_digits]
"""
OWN = '''"""Euler's step in the data prediction, times a number."""

from solvers import Tracer, solver


@solver("own", order=1, predicts="data", grids={"*": "logsnr"})
def own(p: Tracer, grid) -> None:
    x = p.start()
    for i in range(grid.steps):
        r = grid.sigma[i + 1] / grid.sigma[i]
        x = p.state(FACTOR * r * x + (grid.alpha[i + 1] - r * grid.alpha[i]) * p.model(x, i))
'''
SLOW = """

from time import process_time as _now

_sample = sample


def sample(plan, denoiser, x_T, noise=None, callback=None, cond=None):
    began = _now()
    out = _sample(plan, denoiser, x_T, noise, callback, cond)
    took = _now() - began
    while _now() - began < 1.5 * took:
        pass
    return out
"""


def write_solver(folder: Path, factor: float) -> Path:
    path = folder / "own.py"
    path.write_text(OWN.replace("FACTOR", repr(factor)))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep's file, a solver of one's own, and the baseline of the two."""
    folder = tmp_path_factory.mktemp("gate")
    solver = write_solver(folder, 1.0)
    (folder / "mine.yaml").write_text(SWEEP.replace("SOLVER", f"'{solver}:own'"))
    recordings = dict(list(read_recordings(HERE / "golden.json").items())[:3])
    sweeps = named([folder / "mine.yaml"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.gate.update.SESSIONS", 3)
        baseline = update(None, sweeps, recordings, "a test", "cpu", lambda text: None)
    write_baseline(folder / "baseline.json", baseline)
    return folder


@pytest.fixture
def baseline(folder: Path) -> Iterator[Baseline]:
    """The baseline; the solver is put back behind the test."""
    yield read_baseline(folder / "baseline.json")
    write_solver(folder, 1.0)


def checks(baseline: Baseline, scratch: Path, *kinds: str) -> list[Check]:
    return [check for check in Gate(baseline, "cpu").checks(scratch) if check.kind in kinds]


def faults(found: Sequence[Check]) -> dict[tuple[str, str], str]:
    """The lines of checks that fail, by solver and kind."""
    return {
        ("own" if "own.py" in check.subject else check.subject, check.kind): check.verdict.fault
        for check in found
        if check.verdict.fault
    }


def test_nothing_changed_and_all_holds(folder: Path, forks: Nest) -> None:
    done = forks.answer("gate", "--baseline", "baseline.json", "mine.yaml", cwd=folder, env={"COLUMNS": "200"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "9 of 9 checks hold" in done.stdout
    assert "failed" not in done.stdout


def test_a_coefficient_off_by_a_thousandth(folder: Path, baseline: Baseline, tmp_path: Path) -> None:
    write_solver(folder, 1.001)
    found = faults(checks(baseline, tmp_path, "plan", "golden"))
    assert list(found) == [("own", "plan")]
    assert "instruction 1, coefficient of r0: " in found["own", "plan"]
    assert "by 0.001 of it" in found["own", "plan"]


def test_a_step_of_two_calls(folder: Path, baseline: Baseline, tmp_path: Path) -> None:
    """The budget that was recorded cannot be spent any more."""
    path = folder / "own.py"
    path.write_text(path.read_text() + "        x = p.state(x + 1e-3 * p.model(x, i))\n")
    found = faults(checks(baseline, tmp_path, "plan", "quality", "speed"))
    assert list(found) == [("mine", "plan")]
    assert "own cannot spend 5 calls" in found["mine", "plan"]


def test_an_extra_network_call_beneath_the_count(
    baseline: Baseline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = solvers.Denoiser._evaluate

    def twice(self: solvers.Denoiser, x: Tensor, t: Tensor, scale: Any, cond: Any) -> Tensor:
        self.network(x, t, **cond)
        return once(self, x, t, scale, cond)

    monkeypatch.setattr(solvers.Denoiser, "_evaluate", twice)
    found = faults(checks(baseline, tmp_path, "plan"))
    assert set(found) == {("mine dpmpp_2m nfe=5", "plan"), ("own", "plan")}
    assert "the network ran 10 times, in a plain loop over the same plan 5 times" in found["own", "plan"]


def test_an_executor_that_computes_otherwise(
    baseline: Baseline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = solvers.execute._summed
    monkeypatch.setattr(solvers.execute, "_summed", lambda *given: right(*given).mul_(1 + 1e-6))
    found = faults(checks(baseline, tmp_path, "plan"))
    assert "from a plain loop over the same plan, in float64" in found["own", "plan"]


def test_a_metric_with_swapped_reference(baseline: Baseline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits.real, "__defaults__", ("heldout",))
    found = faults(checks(baseline, tmp_path, "quality"))
    assert len(found) == 2
    assert all("frechet_digits: " in fault for fault in found.values())
    assert all("against" in fault or "outside its window" in fault for fault in found.values())


def test_the_same_number_against_another_reference_of_the_same_name(folder: Path, tmp_path: Path) -> None:
    """What only the digest tells: a number that moved, though within its window."""
    kept = json.loads((folder / "baseline.json").read_text())
    for cell in kept["sweeps"]["mine"]["cells"].values():
        value = cell["values"]["frechet_digits"]
        value["value"] += 0.05 * value["se"]
    moved = Baseline.model_validate(kept)
    assert not faults(checks(moved, tmp_path / "a", "quality"))
    for cell in kept["sweeps"]["mine"]["cells"].values():
        cell["values"]["frechet_digits"]["reference"]["sha256"] = "0" * 64
    assert "against another reference" in str(faults(checks(Baseline.model_validate(kept), tmp_path / "b", "quality")))


@pytest.mark.parametrize("standard_errors", [-0.2, 0.2])
def test_the_window_has_two_sides(folder: Path, tmp_path: Path, standard_errors: float) -> None:
    kept = json.loads((folder / "baseline.json").read_text())
    value = next(iter(kept["sweeps"]["mine"]["cells"].values()))["values"]["frechet_digits"]
    value["value"] += standard_errors * value["se"]
    found = faults(checks(Baseline.model_validate(kept), tmp_path, "quality"))
    assert list(found) == [("mine dpmpp_2m nfe=5", "quality")]
    assert "by 0.2 standard errors, outside its window" in str(found)


def test_a_golden_error_that_moved(folder: Path, tmp_path: Path) -> None:
    kept = json.loads((folder / "baseline.json").read_text())
    name, recording = next(iter(kept["recordings"].items()))
    recording["x_final"][0][0][0][0] += 1e-6
    found = faults(checks(Baseline.model_validate(kept), tmp_path, "golden"))
    assert list(found) == [(name, "golden")]
    assert "became 1e-06" in found[name, "golden"]


def test_an_executor_that_is_slower_by_half(folder: Path, tmp_path: Path) -> None:
    """In a copy of the code; results/gate shows 30 %, from a baseline of more cells and sessions."""
    shutil.copytree(ROOT / "solvers", tmp_path / "solvers", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "solvers" / "execute.py").write_text((ROOT / "solvers" / "execute.py").read_text() + SLOW)
    done = fewstep("gate", "--baseline", str(folder / "baseline.json"), cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("failed: ")]
    assert len(lines) == 2, lines
    assert all(": speed: ratio to a plain loop" in line for line in lines), lines


def fewstep(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command, with what of the code is in its folder in place of ours."""
    environment = os.environ | {"COLUMNS": "200", "PYTHONPATH": str(cwd)}
    return subprocess.run([FEWSTEP, *arguments], capture_output=True, text=True, cwd=cwd, env=environment)


def pytest_run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A run of its own: told that it is a worker's of ours, pytest-benchmark would measure nothing."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment | {"COLUMNS": "200"})


def test_pytest_runs_a_test_a_check_and_a_failing_one_says_its_line(folder: Path, baseline: Baseline) -> None:
    write_solver(folder, 1.001)
    ours = ("-k", "plan or golden or dpmpp_2m", "--benchmark-json", "times.json")
    done = pytest_run("--fewstep-gate=baseline.json", *ours, cwd=folder)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed, 6 passed, 2 deselected" in done.stdout
    [line] = [
        line for line in done.stdout.splitlines() if ": plan: " in line and "own.py" in line and "FAILED" not in line
    ]
    assert "instruction 1, coefficient of r0: " in line
    assert "Traceback" not in done.stdout
    [timed] = json.loads((folder / "times.json").read_text())["benchmarks"]
    assert timed["name"] == "speed[mine dpmpp_2m nfe=5]"
    assert " of " in timed["extra_info"]["ratio to a plain loop"]


def test_pytest_takes_the_file_from_its_configuration_and_needs_no_benchmark(
    folder: Path, pytester: pytest.Pytester
) -> None:
    pytester.makeini(f"[pytest]\nfewstep_gate = {folder / 'baseline.json'}\n")
    pytester.makepyfile(test_other="def test_other(): pass")
    alone = pytester.runpytest_inprocess("--fewstep-gate", "-p", "no:benchmark", "--collect-only")
    alone.stdout.fnmatch_lines(["*Function golden*", "*9 tests collected*"])
    alone.stdout.no_fnmatch_line("*test_other*")
    beside = pytester.runpytest_inprocess("test_other.py", "--fewstep-gate", "--collect-only")
    beside.stdout.fnmatch_lines(["*test_other*", "*10 tests collected*"])


def test_pytest_starts_without_torch(tmp_path: Path) -> None:
    (tmp_path / "test_light.py").write_text("import sys\n\ndef test_light():\n    assert 'torch' not in sys.modules\n")
    assert pytest_run("test_light.py", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--fewstep-gate=no.json"], "no.json is no file"),
        (["--fewstep-gate"], "give --fewstep-gate=FILE, or fewstep_gate = FILE in ini"),
        (["--fewstep-gate=there.json", "-n", "2"], "run it without -n"),
        (["--fewstep-gate=there.json"], "there.json: format: Input should be 1, not 7"),
    ],
)
def test_pytest_says_in_a_line_what_is_wrong(pytester: pytest.Pytester, arguments: list[str], said: str) -> None:
    pytester.makefile(".json", there='{"format": 7}')
    done = pytester.runpytest_inprocess(*arguments)
    assert done.ret in (pytest.ExitCode.INTERRUPTED, pytest.ExitCode.USAGE_ERROR)
    told = str(done.stdout) + str(done.stderr)
    assert said in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--baseline", "none.json"], "none.json cannot be read: No such file or directory; `fewstep gate SWEEP.yaml"),
        (["--baseline", "list.json"], "list.json holds no JSON object"),
        (["--baseline", "bad.json"], "bad.json is not JSON"),
        (["--baseline", "old.json"], "old.json: format: Input should be 1, not 2"),
        (["--baseline", "empty.json"], "empty.json is no baseline: its history is empty"),
        (["--baseline", "new.json", "--update"], "--update needs --reason TEXT"),
        (["--baseline", "new.json", "--update", "--reason", " "], "--update needs --reason TEXT"),
        (["--baseline", "new.json", "--reason", "why"], "--reason 'why': give it with --update"),
        (["--baseline", "new.json", "--golden", "list.json"], "give it with --update"),
        (["--baseline", "new.json", "--update", "--reason", "why"], "a new baseline needs sweeps"),
        (["no.yaml", "--baseline", "new.json", "--update", "--reason", "why"], "no.yaml"),
        (["--baseline", "{folder}/mine.yaml"], "mine.yaml is not JSON"),
        (["other.yaml", "--baseline", "{folder}/baseline.json"], "the baseline has no sweep 'other', but mine"),
        (["mine.yaml", "--baseline", "{folder}/baseline.json"], "sweep mine: nfe is [6], in the baseline [5]"),
        (["--baseline", "{folder}/baseline.json", "--device", "tpu"], "--device tpu: give auto, cpu"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    folder: Path, tmp_path: Path, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name, text in {"list": "[]", "bad": "{", "old": '{"format": 2}', "empty": "{}"}.items():
        (tmp_path / f"{name}.json").write_text(text)
    (tmp_path / "other.yaml").write_text("checkpoint: gmm\n")
    (tmp_path / "mine.yaml").write_text((folder / "mine.yaml").read_text().replace("[5]", "[6]"))
    before = sorted(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fewstep", "gate", *(each.format(folder=folder) for each in arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_an_update_keeps_the_history_and_says_what_changed(
    folder: Path,
    baseline: Baseline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "baseline.json"
    shutil.copy(folder / "baseline.json", path)
    write_solver(folder, 1.001)
    command = ["gate", "--baseline", str(path), "--update", "--reason", "A better factor", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["fewstep", *command])
    monkeypatch.setattr("bench.gate.update.SESSIONS", 1)
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code
    first, second = read_baseline(path).history
    assert (first.reason, second.reason) == ("a test", "A better factor")
    assert len(second.changed) == 1
    assert "own nfe=5: instruction 1, coefficient of r0: " in second.changed[0]
    assert second.changed[0] in capsys.readouterr().out
    assert read_baseline(path).settings == baseline.settings


def test_a_written_baseline_is_read_back_and_written_the_same(folder: Path, tmp_path: Path) -> None:
    path = folder / "baseline.json"
    write_baseline(tmp_path / "again.json", read_baseline(path))
    assert (tmp_path / "again.json").read_text() == path.read_text()
    assert '{"out": 1, "model": 0, "t": ' in path.read_text(), "an instruction a line, for the diff"


def test_the_documented_workflow_is_one_and_its_commands_exist() -> None:
    page = (ROOT / "docs" / "how-to" / "gate.md").read_text()
    [written] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    steps = yaml.safe_load(written)["jobs"]["gate"]["steps"]
    [gate] = [step["run"] for step in steps if "fewstep" in step.get("run", "")]
    commands = [gate.partition(" | ")[0], *re.findall(r"^fewstep gate .*", page, re.MULTILINE)]
    assert len(commands) == 3
    known = {parameter for each in get_command(app).commands["gate"].params for parameter in each.opts}
    for command in commands:
        name, what, *given = shlex.split(command)
        assert (name, what) == ("fewstep", "gate")
        assert {word for word in given if word.startswith("--")} <= known
    assert {"checkout", "setup-python", "cache", "upload-artifact"} == {
        step["uses"].partition("@")[0].removeprefix("actions/") for step in steps if "uses" in step
    }
