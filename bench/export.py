"""A results folder for other tools: TensorBoard's event files, or MLflow's tracking store."""

import math
import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from bench.errors import UsageError
from bench.files import nearest_folder, sha256
from bench.pngs import file_name
from bench.report.run import Run, read_run
from bench.store import stores
from solvers import did_you_mean

NEEDS = {  # modules that a tool's writer imports, and the packages that bring them
    "tensorboard": {"tensorboard": "tensorboard"},
    "mlflow": {"mlflow": "mlflow-skinny", "sqlalchemy": "sqlalchemy", "alembic": "alembic"},
}
COSTS = (  # columns of the tidy table
    "latency_batch1_ms", "latency_batch1_iqr_ms", "latency_best_ms", "latency_best_iqr_ms", "best_batch",
    "throughput_per_s", "peak_memory_mib", "memory_above_weights_mib",
)  # fmt: skip
ABOUT = ("checkpoint", "samples", "guidance", "precision", "layout", "backend", "dtype", "order")  # fields of a cell


def export(folder: Path, to: str, out: Path | None) -> Path:
    """Write the finished cells of a results folder, or of all in it, for a tool; returns where.

    What an export wrote there before is brought up to date, never doubled.  Raises UsageError and UnknownNameError
    before anything is written: no results, a package that is missing, other files in the place.
    """
    if to not in NEEDS:
        raise did_you_mean("--to", to, NEEDS)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would tell its makers of each use
    if missing := [package for module, package in NEEDS[to].items() if not _is_there(module)]:
        raise UsageError(f"--to {to} needs {', '.join(missing)}: pip install 'fewstep[export]'")
    runs, place = _runs(folder), out or folder / to
    try:
        import_module(f"bench.export_{to}").write(runs, place)
    except OSError as error:
        raise UsageError(f"{place} cannot be written: {error.strerror or error}") from error
    return place


def check_ours(folder: Path, mark: str) -> None:
    """Raises UsageError unless a folder is new, empty, or has the file `mark`, which an export leaves."""
    if nearest_folder(folder) == folder and any(folder.iterdir()) and not (folder / mark).exists():
        raise UsageError(f"{folder} holds other files: give a new or empty folder, --out DIR")


def distinct(names: set[str]) -> dict[str, str]:
    """Each name as part of a file's, with a digest where two would be alike or nothing is left of one."""
    short = {name: file_name(name) for name in sorted(names)}
    alike = ["", *short.values()]
    return {n: text if alike.count(text) == 1 else f"{text}-{sha256(n.encode())[:8]}" for n, text in short.items()}


def finite(numbers: Mapping[str, float | None]) -> dict[str, float]:
    """Those that are known."""
    return {name: float(number) for name, number in numbers.items() if number is not None and math.isfinite(number)}


def _runs(folder: Path) -> dict[str, Run]:
    """The runs that have finished cells by their folders below `folder`, or by its own name."""
    found = [store for store in stores(folder) if any(True for _ in store.records())]
    if not found:
        raise UsageError(f"{folder} holds no finished cell: run its sweep first")
    top = folder.resolve()
    paths = [store.folder.resolve().relative_to(top) for store in found]
    names = [path.as_posix() if path.parts else top.name for path in paths]
    return {name: read_run(store) for name, store in zip(names, found, strict=True)}


def _is_there(module: str) -> bool:
    try:
        import_module(module)
    except ImportError:
        return False
    return True
