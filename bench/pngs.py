"""Samples as PNG files, for other tools: the very bytes that metrics see."""

import os
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from bench.checkpoints import Checkpoint
from bench.errors import UsageError
from bench.files import nearest_folder, sha256
from bench.metrics import Chunk
from bench.spec import Cell

LONGEST = 60  # letters of a solver in a file's name, which file systems allow 255 bytes


def exporter(folder: Path, checkpoint: Checkpoint) -> Callable[[Cell, Chunk], None]:
    """Writes each chunk of a cell to <folder>/<solver>-nfe<N>-seed<S>-<key>/<sample>.png.

    Raises UsageError when the checkpoint makes no images, or the folder is a file or not to be written to.
    """
    if checkpoint.kind != "image":
        raise UsageError(f"--png {folder}: {checkpoint.name} makes no images")
    if not os.access(nearest_folder(folder), os.W_OK):
        raise UsageError(f"--png {folder} is not writable")

    def export(cell: Cell, chunk: Chunk) -> None:
        assert chunk.images is not None
        name = f"{file_name(cell.solver)}-nfe{cell.nfe or 'adaptive'}-seed{cell.seed}-{cell.key[:8]}"
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(chunk.images, chunk.start):
            picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
            picture.save(folder / name / f"{i:06}.png")

    return export


def file_name(solver: str) -> str:
    """A solver as part of a file's name; of a long one the start, and a digest in place of the rest."""
    name = "".join(c if c.isalnum() or c in "_-" else "-" for c in solver).strip("-")
    return name if len(name) <= LONGEST else f"{name[:LONGEST]}-{sha256(solver.encode())[:8]}"
