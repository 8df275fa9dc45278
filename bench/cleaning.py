"""Disk space that a results folder needs no longer, given back."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from bench.claims import Claims
from bench.errors import UsageError
from bench.keeping import Keep, held, kept
from bench.sealed import CorruptError, read_arrays, size_of, write_arrays
from bench.store import Store
from solvers import did_you_mean

TEMPORARY = re.compile(r"\..+\.(json|jsonl|npz|npy|parquet|csv|md|tex|html|png|pdf|svg)\.[a-z0-9_]{8}")  # files.py's


@dataclass
class Freed:
    """Files that are gone, or smaller, and the bytes which that freed."""

    what: str
    files: int = 0
    size: int = 0


def clean(store: Store, keep: str | None = None, dry: bool = False) -> list[str]:
    """Delete what nothing needs, shrink features to what is to be kept, if that is given, and say in lines what that
    freed; a dry run says it alone.  Records, images and unfinished cells' blocks stay.

    Raises UsageError while another process works there, and where it may not write.
    """
    store.definition()
    if keep is not None and keep not in get_args(Keep):
        raise did_you_mean("keep", keep, list(get_args(Keep)))
    with _alone(store, dry):
        found = [_deleted(what, paths(store), store, dry) for what, paths in NEEDLESS.items()]
        notes: list[str] = []
        if keep:
            found.append(_shrink(store, keep, dry, notes))  # type: ignore[arg-type]
    verb = "would free" if dry else "freed"
    lines = [f"  {freed.size:,} bytes: {freed.what}, {freed.files} files" for freed in found if freed.files]
    return [f"{store.folder}: {verb} {sum(freed.size for freed in found):,} bytes", *lines, *notes]


@contextmanager
def _alone(store: Store, dry: bool) -> Iterator[None]:
    """Nobody else may begin to work there meanwhile; a dry run, which writes nothing, does not care."""
    if dry:
        yield
        return
    try:
        claims = Claims(store.folder / ".claims")
    except OSError as error:
        raise UsageError(f"{store.folder} is not writable: {error.strerror}") from error
    try:
        if not claims.take_all():
            raise UsageError(f"{store.folder}: another process works on it; clean it when that has ended")
        yield
    finally:
        claims.close()


def _temporary(store: Store) -> Iterator[Path]:
    """Of writers that were killed."""
    return (path for path in store.folder.rglob(".*") if TEMPORARY.fullmatch(path.name))


def _blocks(store: Store) -> Iterator[Path]:
    return (path for path in store.folder.glob("chunks/*/*.npz") if store.has(path.parent.name))


def _over(store: Store) -> Iterator[Path]:
    """The session all of whose cells are measured; a damaged one is the next sweep's affair."""
    with suppress(CorruptError):
        session = store.session()
        if session and all(store.measured(key) or key in session["faults"] for key in session["cells"]):
            yield store.folder / "session.json"


def _references(store: Store) -> Iterator[Path]:
    """What metrics keep for cells to come, when none will."""
    if all(map(store.has, store.definition()["cells"])):
        yield from store.cache.glob("trajectory-*.npz")


NEEDLESS: dict[str, Callable[[Store], Iterator[Path]]] = {
    "left by writers that were killed": _temporary,
    "blocks of finished cells": _blocks,
    "damaged files that were set aside": lambda store: store.folder.glob("aside/*"),
    "a measuring session that is over": _over,
    "solutions for cells to come, of which there are none": _references,
    "logs and results of Slurm jobs": lambda store: store.folder.glob("slurm/*"),
}


def _deleted(what: str, paths: Iterator[Path], store: Store, dry: bool) -> Freed:
    """Delete files, and the folders that this empties; links lead out of the results folder, and are not followed."""
    freed, inside = Freed(what), store.folder.resolve()
    for path in [p for p in paths if p.is_file() and p.parent.resolve().is_relative_to(inside)]:
        freed.files += 1
        freed.size += path.lstat().st_size
        if not dry:
            path.unlink()
            for folder in path.relative_to(store.folder).parents[:-1]:
                with suppress(OSError):  # others are there
                    (store.folder / folder).rmdir()
    return freed


def _shrink(store: Store, keep: Keep, dry: bool, notes: list[str]) -> Freed:
    """Keep less of sidecars, as far as they hold more."""
    freed, order, less, damaged = Freed(f"features, of which {keep} stays"), get_args(Keep), 0, 0
    for path in sorted(path for path in store.cache.glob("*.npz") if store.has(path.stem)):
        try:
            arrays = read_arrays(path)
        except CorruptError:
            damaged += 1
            continue
        less += order.index(held(arrays)) > order.index(keep)
        smaller = kept(arrays, keep)
        if sum(a.nbytes for a in smaller.values()) < sum(a.nbytes for a in arrays.values()):
            freed.files += 1
            freed.size += path.stat().st_size - size_of(smaller)
            if not dry:
                write_arrays(path, smaller)
    if less:
        notes.append(
            f"  {less} sidecars hold less than {keep} already, and only sampling anew brings back what is gone"
        )
    if damaged:
        notes.append(f"  {damaged} sidecars are damaged and stay as they are: the next sweep sets them aside")
    return freed
