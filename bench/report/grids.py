"""Image grids: what a solver makes of the same noise at few and at many calls."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bench.files import write_atomically
from bench.pngs import file_name
from bench.report.plots import LONGEST, STYLE
from bench.report.scores import series_of
from bench.report.text import counted, cut, shown
from bench.store import Record, Store

ROWS, COLUMNS = 4, 8


def write_grids(store: Store, records: list[Record], folder: Path) -> list[Path]:
    """One PNG a solver whose cells kept images: the lowest and the highest budget, if there are two, side by side."""
    written = []
    for name in sorted({series_of(record) for record in records}):
        cells = sorted((r for r in records if series_of(r) == name), key=lambda r: r["counted_nfe"])
        ends = [(r["counted_nfe"], store.sidecar(r["key"]).get("images")) for r in cells[:: max(1, len(cells) - 1)]]
        pictures = [(nfe, images) for nfe, images in ends if images is not None]
        if pictures:
            written.append(_save(folder / f"samples-{file_name(name)}.png", name, pictures))
    return written


def _save(path: Path, name: str, pictures: list[tuple[int, NDArray[np.uint8]]]) -> Path:
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(5.5 * len(pictures), 3.3), layout="constrained")
        about = ": the same noise at two budgets" if len(pictures) == 2 else ""
        figure.suptitle(cut(shown(name), LONGEST) + about, fontsize=12)
        figure.get_layout_engine().set(wspace=0.1)
        for axes, (nfe, images) in zip(np.ravel(figure.subplots(1, len(pictures))), pictures, strict=True):
            axes.imshow(tile(images), cmap="gray" if images.shape[1] == 1 else None, vmin=0, vmax=255)
            axes.set_title(counted(float(f"{nfe:.4g}"), "network call"), fontsize=12)
            axes.set_axis_off()
        write_atomically(path, lambda file: figure.savefig(file, dpi=110, metadata={"Software": None}))
    return path


def tile(images: NDArray[np.uint8], columns: int = COLUMNS) -> NDArray[np.uint8]:
    """(N, C, H, W) -> one picture of ROWS x `columns` images, at most, with a white line between them."""
    images = images[: ROWS * columns]
    blanks = -len(images) % columns  # a last row that is not full ends in white
    padded = np.pad(images, ((0, blanks), (0, 0), (0, 1), (0, 1)), constant_values=255)
    _, C, H, W = padded.shape
    tiled = padded.reshape(-1, columns, C, H, W).transpose(0, 3, 1, 4, 2).reshape(-1, columns * W, C)
    return tiled[:-1, :-1].squeeze(-1) if C == 1 else tiled[:-1, :-1]
