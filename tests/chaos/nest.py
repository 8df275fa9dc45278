"""Processes of the command line that start at once: forked from one that has imported all of it and run nothing.

    python -m tests.chaos.nest

answers JSON with JSON, a line each: a `Request` with the forked process's id, an id with its exit code once it has
ended, null before.  What is forked is a process of its own, which can be killed; what it runs is `bench.cli.main`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing import forkserver, process
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0  # seconds, on a machine that others use too
LOOK = 0.005  # seconds between looks for a process's end


@dataclass(frozen=True)
class Request:
    """A command line in a folder, with what it says in files, which may be one; `world` names functions of
    tests.chaos.world, with their arguments, that change what surrounds it before it begins."""

    arguments: list[str]
    folder: str
    out: str
    err: str
    environment: Mapping[str, str]
    world: Mapping[str, list[Any]] = field(default_factory=dict)


@dataclass
class Process:
    """A forked command line."""

    nest: "Nest"
    pid: int
    _says: Path
    code: int | None = None

    def wait(self, seconds: float = PATIENCE) -> int | None:
        """Its exit code, minus the signal that ended it; None when it still runs after so many seconds."""
        end = time.monotonic() + seconds
        while self.code is None:
            self.code = self.nest.ask(self.pid)
            if self.code is None and time.monotonic() >= end:
                return None
            time.sleep(0 if self.code is not None else LOOK)
        return self.code

    def done(self) -> int:
        """Its exit code; it is killed where it takes too long, and the test fails."""
        if self.wait() is None:
            self.send(signal.SIGKILL)
            raise AssertionError(f"no end after {PATIENCE} s: {self.said()}")
        assert self.code is not None
        return self.code

    def send(self, number: int) -> None:
        """A signal, unless it has ended; of one that kills, the end is waited for."""
        if self.code is None:
            os.kill(self.pid, number)
            if number == signal.SIGKILL:
                self.wait()

    def said(self) -> str:
        """All it said so far, in one line for each run of white space: terminals' widths are nobody's business."""
        return " ".join(self._says.read_text(errors="replace").split())


class Nest:
    """The process that forks; `before` is a command line that starts it, such as one that gives it disks of its own."""

    def __init__(self, before: tuple[str, ...] = ()) -> None:
        command = [*before, sys.executable, "-m", "tests.chaos.nest"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=_environment(), text=True, bufsize=1
        )
        self._started = 0
        self.pid: int = self.ask(None)

    def ask(self, what: Any) -> Any:
        """The answer to a request."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(what) + "\n")
        return json.loads(self._process.stdout.readline())

    def start(self, *arguments: str | Path, folder: Path, **world: list[Any]) -> Process:
        """Fork a command line in a folder; `world` is as in a Request."""
        self._started += 1
        says = folder / f".says-{self._started}"
        return self._begin(arguments, folder, says, says, world)

    def _begin(
        self, words: tuple[str | Path, ...], folder: Path, out: Path, err: Path, world: Any,
        env: Mapping[str, str] | None = None,
    ) -> Process:  # fmt: skip
        out.touch()
        err.touch()
        request = Request(list(map(str, words)), str(folder), str(out), str(err), _environment() | (env or {}), world)
        return Process(self, self.ask(asdict(request)), out)

    def run(self, *arguments: str | Path, folder: Path, **world: list[Any]) -> Process:
        """As `start`, and wait for its end."""
        process = self.start(*arguments, folder=folder, **world)
        process.done()
        return process

    def answer(
        self, *arguments: str | Path, cwd: Path, env: Mapping[str, str] | None = None, **world: list[Any]
    ) -> subprocess.CompletedProcess[str]:
        """As subprocess.run does with the installed command, its output captured; `env` is added to ours."""
        with TemporaryDirectory() as place:
            out, err = Path(place, "out"), Path(place, "err")
            code = self._begin(arguments, cwd, out, err, world, env or {}).done()
            said = [path.read_bytes().decode() for path in (out, err)]
        return subprocess.CompletedProcess(arguments, code, *said)

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


@contextmanager
def nest(before: tuple[str, ...] = ()) -> Iterator[Nest]:
    made = Nest(before)
    try:
        yield made
    finally:
        made.close()


def _serve() -> None:
    """Answer until nobody asks any more."""
    answers = os.dup(1)
    _import_all()
    codes: dict[int, int] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        if asked is None:
            answer: int | None = os.getpid()
        elif isinstance(asked, int):
            if asked not in codes:
                pid, status = os.waitpid(asked, os.WNOHANG)
                codes |= {asked: os.waitstatus_to_exitcode(status)} if pid else {}
            answer = codes.get(asked)
        else:
            answer = _fork(Request(**asked))
        os.write(answers, json.dumps(answer).encode() + b"\n")
    os._exit(0)  # at once: there is nothing to tidy


def _import_all() -> None:
    """What the sweep imports inside its commands."""
    import importlib

    for name in ("bench.cli", "bench.sweeps", "bench.measure.work", "bench.report.page", "scipy.integrate", "sklearn"):
        importlib.import_module(name)
    for name in ("pdf", "svg", "agg"):  # which matplotlib imports when it first writes such a file
        importlib.import_module(f"matplotlib.backends.backend_{name}")


def _fork(request: Request) -> int:
    from bench.forkserver import start_server

    start_server()  # of measuring processes, which all forks share; one that was killed may have taken it along
    pid = os.fork()
    if pid == 0:
        forkserver.ensure_running = forkserver._forkserver.ensure_running = _runs
        try:
            _become(request)
        finally:  # whatever it raised has no place in the nest's own frames
            os._exit(70)
    return pid


def _runs() -> None:
    """The server of measuring processes does: as a child of the nest and of no fork, so that a fork cannot look."""


def _become(request: Request) -> None:
    """A command line's own process; never returns."""
    from bench import cli
    from tests.chaos import world

    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        signal.signal(number, handler)  # a shell's background processes ignore the first
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.folder)
    process.ORIGINAL_DIR = request.folder  # where multiprocessing believes that this process began
    for stream, path in ((1, request.out), (2, request.err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = ["fewstep", *request.arguments]
    code = 70
    try:
        for name, arguments in request.world.items():
            getattr(world, name)(*arguments)
        cli.main()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # a traceback, as python itself would end
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve()
