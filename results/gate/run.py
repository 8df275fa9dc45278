"""What the gate catches and how often it cries wolf: python results/gate/run.py writes results/gate/README.md.

A baseline of two sweeps is recorded, the gate is run again and again on the same code, alone and beside busy processes,
and then once on each of several copies of the code with one thing wrong in it.  A run is a process of its own.  About
15 minutes on two quiet cores.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
FEWSTEP = str(Path(sys.executable).parent / "fewstep")
RUNS, BUSY = 50, 10  # identical runs alone, and beside as many busy processes as there are cores
SWEEPS = {
    "gmm": {"checkpoint": "gmm", "solvers": ["ddim", "unipc", "dpmpp_2m_sde"], "nfe": [6], "samples": 200,
            "metrics": ["frechet_exact"]},
    "digits": {"checkpoint": "digits", "solvers": ["ddim", "dpmpp_2m", "deis_tab3"], "nfe": [8], "samples": 200,
               "metrics": ["frechet_digits"]},
}  # fmt: skip
SPIN = """

from time import process_time as _now

_sample = sample


def sample(*given, **named):
    began = _now()
    out = _sample(*given, **named)
    took = _now() - began
    while _now() - began < FACTOR * took:
        pass
    return out
"""


WAIT = """

from time import perf_counter as _now, sleep as _sleep

_sample = sample


def sample(*given, **named):
    began = _now()
    out = _sample(*given, **named)
    _sleep(0.3 * (_now() - began))
    return out
"""


@dataclass(frozen=True)
class Fault:
    """Something wrong: in a file of the code, this text in place of that, or at its end where that is empty."""

    what: str
    file: str
    there: str
    instead: str


FAULTS = (
    Fault("a coefficient of DDIM off by 1e-3", "solvers/ddim.py", "/ sigma[i] * x", "/ sigma[i] * 1.001 * x"),
    Fault("an extra network call, not counted", "solvers/model.py", "        out = self.network(x, t, **cond)",
          "        self.network(x, t, **cond)\n        out = self.network(x, t, **cond)"),
    Fault("a slowdown of 30 %", "solvers/execute.py", "", SPIN.replace("FACTOR", "1.3")),
    Fault("a slowdown of 15 %", "solvers/execute.py", "", SPIN.replace("FACTOR", "1.15")),
    Fault("a sleep of 30 %", "solvers/execute.py", "", WAIT),
    Fault("held-out digits as the reference", "bench/checkpoints/digits.py", 'split: str = "train"',
          'split: str = "heldout"'),
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """A run of the gate: its exit code, the lines of what failed, seconds."""

    code: int
    failed: list[str]
    seconds: float


def gate(cwd: Path, *more: str) -> Outcome:
    """The gate on what of the code lies in `cwd`, and for the rest on ours."""
    environment = os.environ | {"PYTHONPATH": str(cwd), "COLUMNS": "200"}
    command, begin = [FEWSTEP, "gate", "--baseline", str(cwd / "baseline.json"), "--device", "cpu", *more], time.time()
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise RuntimeError(done.stderr)
    failed = [line.removeprefix("failed: ") for line in done.stdout.splitlines() if line.startswith("failed: ")]
    return Outcome(done.returncode, failed, time.time() - begin)


def copy_with(fault: Fault, baseline: Path, folder: Path) -> None:
    """The code with the fault in it, and the baseline, in a folder."""
    for package in ("solvers", "distill", "bench"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / fault.file
    text = path.read_text()
    if fault.there and text.count(fault.there) != 1:
        raise RuntimeError(f"{fault.file} holds {fault.there!r} {text.count(fault.there)} times")
    path.write_text(text.replace(fault.there, fault.instead) if fault.there else text + fault.instead)
    shutil.copy(baseline, folder / "baseline.json")


@contextmanager
def busy_neighbours() -> Iterator[None]:
    """As many processes that do nothing but compute as there are cores."""
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def identical(folder: Path, runs: int) -> list[Outcome]:
    outcomes = []
    for k in range(runs):
        outcomes.append(gate(folder))
        print(f"{k + 1} of {runs}: exit code {outcomes[-1].code} {outcomes[-1].failed}", flush=True)
    return outcomes


def report(alone: list[Outcome], busy: list[Outcome], caught: Mapping[str, Outcome], device: str) -> str:
    rows = [
        f"| {what} | {'yes' if o.code else 'no'} | {len(o.failed)} | `{(o.failed or ['-'])[0]}` |"
        for what, o in caught.items()
    ]
    wolf = [f"{sum(o.code for o in outcomes)} of {len(outcomes)}" for outcomes in (alone, busy)]
    seconds = sorted(o.seconds for o in alone)[len(alone) // 2]
    checks = sum(3 * len(sweep["solvers"]) for sweep in SWEEPS.values())
    return f"""# What the gate catches

Made by `python results/gate/run.py` on {device}, {os.cpu_count()} cores.  A baseline of {checks} checks (plan, quality
and speed of {checks // 3} cells on gmm and digits); each run is a fresh process of {seconds:.0f} s.

On identical code it failed in {wolf[0]} runs alone, and in {wolf[1]} beside {os.cpu_count()} busy processes.

| in a copy of the code | caught | checks that fail | the first of them |
|---|---|---|---|
{chr(10).join(rows)}
"""


def main() -> None:
    with TemporaryDirectory() as scratch:
        same = Path(scratch) / "same"
        same.mkdir()
        for name, sweep in SWEEPS.items():
            (same / f"{name}.yaml").write_text(json.dumps(sweep))  # which is YAML
        gate(same, *(f"{name}.yaml" for name in SWEEPS), "--update", "--reason", "to be run against")
        alone = identical(same, RUNS)
        with busy_neighbours():
            busy = identical(same, BUSY)
        caught = {}
        for k, fault in enumerate(FAULTS):
            copy_with(fault, same / "baseline.json", Path(scratch) / str(k))
            caught[fault.what] = gate(Path(scratch) / str(k))
            print(f"{fault.what}: exit code {caught[fault.what].code} {caught[fault.what].failed[:1]}", flush=True)
        device = json.loads((same / "baseline.json").read_text())["history"][-1]["device"]
        (HERE / "README.md").write_text(report(alone, busy, caught, device))


if __name__ == "__main__":
    main()
