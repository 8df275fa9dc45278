"""Samples of every solver from the same noise as small pictures, as many as there is room for."""

from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.report.grids import tile
from bench.report.run import Run
from bench.report.scores import series_of
from bench.report.text import counted

LEVELS = ((32, 64), (16, 64), (8, 64), (8, 32), (8, 16))  # samples in a picture, largest side of one; best first
Cells = list[tuple[str, float, NDArray[np.uint8]]]  # solver, calls, (N, C, H, W)


@dataclass(frozen=True)
class Pictures:
    """Pictures by solver and calls, as the page's script takes them, and what a reader must know of them."""

    data: dict[str, Any] = field(default_factory=dict)
    note: str = ""


def pictures_of(run: Run, room: int) -> Pictures:
    """Those of the run's first seed in at most `room` bytes: fewer and smaller samples first, then fewer solvers."""
    cells = sorted(_cells(run), key=lambda cell: cell[:2])
    if not cells:
        return Pictures(note="No images were kept beside this run's records, so that there are no samples to show.")
    for count, side in LEVELS:
        found, whole = _found(cells, count, side, room)
        if whole:
            break
    native = cells[0][2]
    shrunk = max(native.shape[2:]) > side
    note = f"The first {min(count, len(native))} samples of each cell, seed {_seed(run)}"
    note += f", shrunk to {side} pixels." if shrunk else "."
    return Pictures({"found": found, "smooth": shrunk}, note + _missing(run, found))


def _missing(run: Run, found: dict[str, Any]) -> str:
    there = {series_of(record) for record in run.records}
    if not (left := len(there) - len(found)):
        return ""
    return f"  Of {counted(len(there), 'solver')}, {left} kept no images, or found no room on this page."


def _seed(run: Run) -> int:
    return min(record["cell"]["seed"] for record in run.records)


def _cells(run: Run) -> Iterator[tuple[str, float, NDArray[np.uint8]]]:
    """The cells of the first seed that kept images."""
    seed = _seed(run)
    for record in run.records:
        images = run.store.sidecar(record["key"]).get("images") if record["cell"]["seed"] == seed else None
        if images is not None:
            calls = record["cell"]["nfe"] or round(record["counted_nfe"], 1)
            yield series_of(record), calls, images


def _found(cells: Cells, count: int, side: int, room: int) -> tuple[dict[str, dict[str, str]], bool]:
    """Each cell's picture as a data URI, by solver and calls, of as many solvers as fit; whether all do."""
    found: dict[str, dict[str, str]] = {}
    for solver, calls, images in cells:
        uri = _uri(images[:count], side)
        room -= len(uri) + len(solver) + 20
        if room < 0:
            found.pop(solver, None)  # which would be shown at some of its budgets alone
            return found, False
        found.setdefault(solver, {})[f"{calls:g}"] = uri
    return found, True


def _uri(images: NDArray[np.uint8], side: int) -> str:
    """Samples as one picture, none larger than `side` pixels."""
    buffer, height, width = BytesIO(), *images.shape[2:]
    columns = max(4, len(images) // 4)  # few samples are shown large, many in four rows
    if max(height, width) > side:
        images = _shrunk(images, side / max(height, width))
        Image.fromarray(tile(images, columns)).save(buffer, format="WEBP", quality=70)
        kind = "webp"
    else:
        Image.fromarray(tile(images, columns)).save(buffer, format="PNG", optimize=True)
        kind = "png"
    return f"data:image/{kind};base64,{b64encode(buffer.getvalue()).decode()}"


def _shrunk(images: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    size = [max(1, round(factor * n)) for n in images.shape[:1:-1]]

    def small(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        flat = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        shrunk = np.asarray(Image.fromarray(flat).resize(size, Image.Resampling.BOX))
        return shrunk[None] if shrunk.ndim == 2 else shrunk.transpose(2, 0, 1)

    return np.stack([small(image) for image in images])
