"""Runs as TensorBoard's event files: a folder a solver, its numbers over the network calls."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from bench.export import ABOUT, COSTS, check_ours, distinct, finite
from bench.report.grids import tile
from bench.report.run import Run
from bench.report.scores import series_of
from bench.report.titles import metrics_of
from bench.store import Record

MARK = ".fewstep-export"
SIDE = 256  # pixels that a picture of samples should have; browsers blur what they enlarge
Options = dict[str, float | str]


def write(runs: Mapping[str, Run], place: Path) -> None:
    """Each run to its folder in `place`, made anew; whatever else lies there stays.

    Raises UsageError, before anything is written, where other files have a run's place.
    """
    for name in runs:
        check_ours(place / name, MARK)
    options: Options = {}  # of all, since TensorBoard reads their names from any one of the files
    for run in runs.values():
        for record in run.records:
            options |= _options(record)
    metrics = sorted({f"{metric}/value" for run in runs.values() for metric in run.board["metric"]})
    for name, run in runs.items():
        with _made_anew(place / name) as folder:
            with SummaryWriter(str(folder)) as writer:
                writer.file_writer.add_summary(hparams(options, dict.fromkeys(metrics, 0.0))[0])
            _write_run(run, folder)


def _write_run(run: Run, folder: Path) -> None:
    names = distinct({series_of(record) for record in run.records})
    for solver, rows in run.board.groupby("solver"):
        records = {r["key"]: r for r in run.records if series_of(r) == solver}
        with SummaryWriter(str(folder / names[str(solver)])) as writer:
            start, end = hparams(_options(next(iter(records.values()))), {})[1:]
            writer.file_writer.add_summary(start)
            _write_numbers(writer, rows, records)
            for record in records.values():
                _write_samples(writer, run, record)
            writer.file_writer.add_summary(end)


def _write_numbers(writer: SummaryWriter, rows: pd.DataFrame, records: Mapping[str, Record]) -> None:
    """Each metric with its standard error, and the costs, whose row is any metric's."""
    first = metrics_of(rows)[0]
    for row in rows.sort_values("nfe").to_dict("records"):
        step, when = round(row["nfe"]), _seconds(records[row["key"]])
        numbers = {f"{row['metric']}/value": row["value"], f"{row['metric']}/standard_error": row["se"]}
        if row["metric"] == first:
            numbers |= {f"costs/{name}": row[name] for name in COSTS if name in row}
        for tag, number in finite(numbers).items():
            writer.add_scalar(tag, number, step, walltime=when)


def _write_samples(writer: SummaryWriter, run: Run, record: Record) -> None:
    """The first samples of a cell of the first seed, where they were kept."""
    images = run.store.sidecar(record["key"]).get("images")
    if images is None or record["cell"]["seed"] != min(r["cell"]["seed"] for r in run.records):
        return
    picture, step = _enlarged(tile(images)), round(record["counted_nfe"])
    shape = "HW" if picture.ndim == 2 else "HWC"
    writer.add_image("samples", picture, step, walltime=_seconds(record), dataformats=shape)


def _enlarged(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    times = max(1, SIDE // picture.shape[1])
    return picture.repeat(times, 0).repeat(times, 1)


def _options(record: Record) -> Options:
    """What is shown of a series beside its numbers, by name."""
    cell = record["cell"]
    about = {name: cell[name] for name in ABOUT if cell.get(name) is not None}
    given = {f"option.{name}": value for name, value in cell.get("options", {}).items()}
    return {"solver": series_of(record)} | {name: _plain(value) for name, value in (about | given).items()}


def _plain(value: Any) -> float | str:
    """Numbers as they are; what is true or false would be shown as one."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _seconds(record: Record) -> float:
    return datetime.fromisoformat(record["finished"]).timestamp()


@contextmanager
def _made_anew(folder: Path) -> Iterator[Path]:
    """A new folder to write to, which takes the place of the one that is there when all is written."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as made:
        new, old = Path(made) / "new", Path(made) / "old"
        new.mkdir()
        (new / MARK).touch()
        yield new
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
