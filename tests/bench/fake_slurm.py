"""Commands of Slurm for tests: jobs are processes of this machine, what Slurm knows of them is files in a folder."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

NAMES = ("sbatch", "srun", "sacct", "scontrol", "scancel")


def install(folder: Path) -> Path:
    """A folder to put in PATH."""
    for name in NAMES:
        path = folder / name
        path.write_text(f'#!/bin/sh\nFAKE_SLURM={folder} exec {sys.executable} -S -E {__file__} {name} "$@"\n')
        path.chmod(0o755)
    return folder


def sbatch(folder: Path, script: str) -> None:
    """Start all jobs of an array, or the one."""
    number = len(list(folder.glob("*.script"))) + 1
    text = Path(script).read_text()
    (folder / f"{number}.script").write_text(text)
    array = re.search(r"--array=0-(\d+)%(\d+)", text)
    for task in range(int(array[1]) + 1) if array else [None]:
        job = f"{number}" if task is None else f"{number}_{task}"
        _say(folder, job, "RUNNING")
        environment = os.environ | {"SLURM_JOB_ID": str(number), "SLURM_PROCID": "0"}
        if task is not None:
            environment |= {"SLURM_ARRAY_JOB_ID": str(number), "SLURM_ARRAY_TASK_ID": str(task)}
        command = [sys.executable, "-S", "-E", __file__, "watch", job, script]
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.Popen(command, env=environment, start_new_session=True, **silent)
    print(f"Submitted batch job {number}")


def watch(folder: Path, job: str, script: str) -> None:
    """Run a job, and again when it was put back into the queue."""
    text = (folder / f"{job.partition('_')[0]}.script").read_text()
    while True:
        code = subprocess.run(["bash", "-c", text]).returncode
        if not (folder / f"{job}.requeued").exists():
            break
        (folder / f"{job}.requeued").rename(folder / f"{job}.came-back")
    _say(folder, job, "FAILED" if code else "COMPLETED")


def srun(folder: Path, *words: str) -> None:
    options = {words[i]: words[i + 1] for i in range(len(words)) if words[i] in ("--output", "--error")}
    rest = words[1 + 2 * len(options) :]  # behind --unbuffered
    own = {"%A": "SLURM_ARRAY_JOB_ID", "%a": "SLURM_ARRAY_TASK_ID", "%j": "SLURM_JOB_ID", "%t": "SLURM_PROCID"}
    for number, name in ((1, "--output"), (2, "--error")):
        path = options[name]
        for sign, variable in own.items():
            path = path.replace(sign, os.environ.get(variable, ""))
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.execvp(rest[0], rest)


def sacct(folder: Path, *words: str) -> None:
    print("JobID|State|NodeList")
    for path in sorted(folder.glob("*.state")):
        print(f"{path.stem}|{json.loads(path.read_text())}|here")


def scontrol(folder: Path, what: str, job: str) -> None:
    (folder / f"{job}.{what}d").touch()


def scancel(folder: Path, job: str) -> None:
    (folder / f"{job}.cancelled").touch()


def _say(folder: Path, job: str, state: str) -> None:
    (folder / f"{job}.new").write_text(json.dumps(state))
    (folder / f"{job}.new").rename(folder / f"{job}.state")


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(os.environ["FAKE_SLURM"]), *sys.argv[2:])
