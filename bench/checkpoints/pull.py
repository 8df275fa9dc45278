"""Bringing what the manifest names: over HTTP or from the hub, checked against manifest and lock, then locked."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from bench.checkpoints.download import OnBytes, fetch
from bench.checkpoints.hub import bring
from bench.checkpoints.lock import FilePin, Pin, default_lock, read_lock, write_pin
from bench.checkpoints.manifest import Source
from bench.checkpoints.repository import files_in, index_of, wanted
from bench.errors import UsageError
from bench.metrics.weights import digest_of

Expected = Mapping[str, Mapping[str, str]]  # who says it -> file -> SHA-256


@dataclass(frozen=True)
class Pulled:
    """What a pull came to: where the files lie, their pin, and whether they were here before."""

    path: Path
    pin: Pin
    before: bool

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.pin.files.values())


def pull(source: Source, lock: Path | None = None) -> Pulled:
    """Bring a source unless it is here, check it, and keep its digests in this machine's lock and in `lock`.

    Raises UsageError when it cannot be brought, or is not what `lock`, else this machine's, or the manifest says: then
    nothing is locked.
    """
    who, pin = _pinned(source, (lock or default_lock(), default_lock()))
    expected: dict[str, dict[str, str]] = {}
    if source.sha256:
        expected["the manifest"] = {source.inside or source.home.name: source.sha256}
    if pin:
        expected[str(who)] = {name: file.sha256 for name, file in pin.files.items()}
    revision = (pin and pin.revision) or source.revision
    names = tuple(pin.files) if pin else source.patterns
    before = source.find(revision) is not None
    if not before and source.url:
        _from_url(source, expected)
    elif not before:
        brought = bring(source, revision, names)
        names, expected["the hub"] = tuple(brought), {name: digest for name, digest in brought.items() if digest}
    found = _pin(source, revision, names, expected)
    for place in {default_lock(), lock or default_lock()}:
        there = read_lock(place).get(source.name)
        if there is None or there.model_copy(update={"pulled": found.pulled}) != found:
            write_pin(place, source.name, found)
    path = source.find(found.revision)
    assert path
    return Pulled(path, found, before)


def _pinned(source: Source, locks: tuple[Path, ...]) -> tuple[Path | None, Pin | None]:
    """The first lock that has the source, and what it says."""
    for place in locks:
        if pin := read_lock(place).get(source.name):
            return place, pin
    return None, None


def _pin(source: Source, revision: str, names: Iterable[str], expected: Expected) -> Pin:
    """What is here, checked; raises UsageError for a file that is another than expected."""
    if source.url:
        commit, files = None, {source.home.name: source.home}
    else:
        root = source.snapshot(revision)
        assert root
        here = files_in(root)
        known = tuple(names) or wanted(here, index_of(root))
        matching = (name for name in here if any(fnmatchcase(name, pattern) for pattern in known))
        commit, files = root.name, {name: root / name for name in matching}
    pins = {name: FilePin(sha256=digest_of(path), bytes=path.stat().st_size) for name, path in files.items()}
    for name, pin in pins.items():
        if wrong := _wrong(name, pin.sha256, expected):
            at = files[name].resolve()  # in the hub's cache a blob, which is to be deleted, not the link to it
            raise UsageError(f"{at} is not what it should be: {wrong}; delete it, and the same command pulls again")
    return Pin(source=source.address, revision=commit, files=pins, pulled=datetime.now(UTC).date().isoformat())


def _wrong(name: str, digest: str, expected: Expected) -> str:
    """How a file differs from what is known of it; "" when it does not."""
    for who, digests in expected.items():
        if digests.get(name, digest) != digest:
            return f"its SHA-256 is {digest[:16]}…, {who} says {digests[name][:16]}…"
    return ""


def _from_url(source: Source, expected: Expected) -> None:
    """Bring the one file; what is another than expected is thrown away."""
    assert source.url
    home = source.home
    home.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(home.with_name(f"{home.name}.busy"), timeout=0), _bar(source.name) as on_bytes:
            part = fetch(source.url, home, on_bytes)
            if wrong := _wrong(home.name, digest_of(part.path), expected):
                part.drop()
                raise UsageError(
                    f"{source.url} changed: {wrong}; nothing is kept.  If that is meant, take {source.name!r} out there"
                )
            os.replace(part.path, home)
            part.drop()
    except Timeout:
        raise UsageError(f"{source.name!r} is being pulled by another process") from None


@contextmanager
def _bar(name: str) -> Iterator[OnBytes]:
    """A bar on stderr: bytes, speed, time left."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(name, total=None)
        yield lambda here, total: bar.update(task, completed=here, total=total)
