"""Results as people name them: a folder, or what a git revision has committed of one."""

import io
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from bench.errors import UsageError
from bench.store import Store, stores

KEPT = ("cells", "latency")  # of a committed run, what numbers are read from
Runs = dict[str, Store]


@contextmanager
def opened(text: str) -> Iterator[Runs]:
    """The runs of a folder, of `REV:PATH` (from the repository's top) or of a whole `REV`, by their paths.

    What all paths begin with is left out; one run goes by its folder's name.  Committed runs last as long as the
    context.  Raises UsageError.
    """
    path = Path(text)
    if path.exists():
        yield _named({PurePosixPath(store.folder.resolve()): store for store in stores(path)})
        return
    revision, _, below = text.partition(":")
    commit = _commit(text, revision)
    with TemporaryDirectory(prefix="fewstep-") as folder:
        names = _extract(text, commit, below.strip("/"), Path(folder))
        yield _named({PurePosixPath(name): Store(Path(folder) / name) for name in names})


def _named(found: dict[PurePosixPath, Store]) -> Runs:
    if len(found) == 1:
        return {path.name: store for path, store in found.items()}
    shared = 0
    for parts in zip(*(path.parts for path in found), strict=False):
        if len(set(parts)) > 1:
            break
        shared += 1
    return {"/".join(path.parts[shared:]): store for path, store in found.items()}


def _commit(text: str, revision: str) -> str:
    """The commit that a revision means; raises UsageError."""
    found = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if found.returncode:
        raise UsageError(
            f"{text!r} is no folder, and {revision!r} no revision of a git repository here: give a results folder, "
            "REV:PATH or REV"
        )
    return found.stdout.decode().strip()


def _extract(text: str, commit: str, below: str, folder: Path) -> list[str]:
    """Write a commit's runs at or below a path into a folder; returns their names, from the repository's top."""
    listed = _git("ls-tree", "-r", "-z", "--full-tree", "--name-only", commit)
    files = [PurePosixPath(name) for name in listed.stdout.decode(errors="surrogateescape").split("\0")]
    found = {file.parent for file in files if file.name == "sweep.json"}
    runs = {run for run in found if run.is_relative_to(below)} if below else found
    runs = {PurePosixPath(below)} if PurePosixPath(below) in runs else runs
    if not runs:
        raise UsageError(f"{text!r}: that commit has no results folder {f'at or below {below}' if below else 'in it'}")
    wanted = {run / "sweep.json" for run in runs} | {
        file.parent for file in files if file.parent.name in KEPT and file.parent.parent in runs
    }
    top = _git("rev-parse", "--show-toplevel").stdout.decode(errors="surrogateescape").rstrip("\n")
    names = [f":(literal){name}" for name in sorted(map(str, wanted))]
    archive = _git("-C", top, "archive", "--format=tar", commit, "--", *names)
    if archive.returncode:
        raise UsageError(f"{text!r} cannot be read: git says {archive.stderr.decode(errors='replace').strip()}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return sorted(str(run) for run in runs)


def _git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["git", *arguments], capture_output=True)
    except OSError as error:
        raise UsageError(f"git cannot be run ({error.strerror}): give results folders") from error
