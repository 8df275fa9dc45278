"""The command line, asked something in a place of its own, of which every change is seen."""

import hashlib
import os
import signal
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from types import FrameType

from bench import cli

PATIENCE = 20.0  # on a busy machine: seconds that no bad input may take
OUTSIDE = {
    "elsewhere/secret.yaml": b"samples: 3\n",
    "elsewhere/secret.txt": b"a secret\n",
    "home/.netrc": b"a secret\n",
}
HERE = "here"  # the working directory, beside what lies outside of it


@dataclass(frozen=True)
class Link:
    """A symbolic link, in place of a file."""

    to: str


@dataclass(frozen=True)
class Pipe:
    """A FIFO that nobody writes to, in place of a file."""


Files = Mapping[str, bytes | Link | Pipe]


@dataclass(frozen=True)
class Answer:
    """What a command line came to; `changes` names what was made, changed or deleted anywhere around it."""

    code: int
    out: str
    err: str
    changes: tuple[str, ...]


class TookTooLongError(BaseException):
    """So that no `except Exception` on the way hides it."""


def lay(folder: Path, files: Files) -> None:
    """Make the files below a folder."""
    for name, held in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(held, Link):
            path.symlink_to(held.to)
        elif isinstance(held, Pipe):
            os.mkfifo(path)
        else:
            path.write_bytes(held)


def surroundings(root: Path, files: Files) -> Path:
    """A working directory that holds the files, beside others that are nobody's business."""
    lay(root, OUTSIDE)
    (root / HERE).mkdir()
    lay(root / HERE, files)
    return root / HERE


def seen(root: Path) -> dict[str, tuple[object, ...]]:
    """All there is below a folder, itself included: kind and rights, size, time of change, contents."""
    return {str(path.relative_to(root)): _looks(path) for path in [root, *root.rglob("*")]}


def _looks(path: Path) -> tuple[object, ...]:
    found = path.lstat()
    holds: object = None
    if stat.S_ISLNK(found.st_mode):
        holds = os.readlink(path)
    elif stat.S_ISREG(found.st_mode):
        holds = hashlib.sha256(path.read_bytes()).hexdigest()
    return found.st_mode, found.st_size, found.st_mtime_ns, holds


def changes(before: Mapping[str, object], after: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(sorted(name for name in {**before, **after} if before.get(name) != after.get(name)))


def ask(root: Path, arguments: Sequence[str]) -> Answer:
    """Run a command line here, in the working directory; raises TookTooLongError, and whatever escapes `main`."""
    before, said, code = seen(root), list[str](), 0
    with _standing_in(root / HERE), _called(arguments), _heard(said), _hurried():
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
    return Answer(code, *said, changes(before, seen(root)))


@contextmanager
def _standing_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def _called(arguments: Sequence[str]) -> Iterator[None]:
    before, sys.argv = sys.argv, ["fewstep", *arguments]
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def _heard(said: list[str]) -> Iterator[None]:
    """Put into `said` what goes to the descriptors of stdout and stderr, from Python or from below it."""
    before, copies = (sys.stdout, sys.stderr), (os.dup(1), os.dup(2))
    with TemporaryFile() as out, TemporaryFile() as err:
        for stream in before:
            stream.flush()
        for file, number in ((out, 1), (err, 2)):
            os.dup2(file.fileno(), number)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  # closed below
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        try:
            yield
        finally:
            sys.stdout.close()
            sys.stderr.close()
            sys.stdout, sys.stderr = before
            for number, copy in enumerate(copies, 1):
                os.dup2(copy, number)
                os.close(copy)
            for file in (out, err):
                file.seek(0)
                said.append(file.read().decode())


@contextmanager
def _hurried() -> Iterator[None]:
    """Raise TookTooLongError in what takes longer than PATIENCE, whatever it waits for."""

    def late(signal: int, frame: FrameType | None) -> None:
        raise TookTooLongError

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
