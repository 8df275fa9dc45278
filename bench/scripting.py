"""Sweeps from Python: `bench.sweep(...)` gives a table, `bench.load(folder)` what notebooks show."""

import time
import warnings
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler
from rich.console import Console

from bench.errors import UsageError
from bench.report.leaderboard import BETTER
from bench.report.run import Run, read_run
from bench.report.scores import among_best, seeds_of
from bench.report.text import MARK, of_students, student_names, with_error
from bench.report.titles import metrics_of, title
from bench.store import stores
from bench.sweeps import prepare_all, run_all
from solvers import did_you_mean

LOOKS = [
    {"selector": "caption", "props": "text-align: left; padding-bottom: 0.5em"},
    {
        "selector": "th.row_heading, th.index_name",
        "props": "text-align: left; font-weight: normal; white-space: nowrap",
    },
    {"selector": "td, th.col_heading", "props": "text-align: right; white-space: nowrap; padding: 0.1em 0.4em"},
]
FIGURES = ("quality.png", "students.png")  # of a results folder, as far as they are there


def sweep(
    file: str | Path | None = None,
    *,
    checkpoint: str | Sequence[str] | None = None,
    solvers: Sequence[str | Mapping[str, Any]] | None = None,
    nfe: Sequence[int] | None = None,
    samples: int | None = None,
    seed: int | Sequence[int] | None = None,
    guidance: float | Sequence[float] | None = None,
    precision: str | Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    latency: bool | Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    batch: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Run a sweep, or what is left of it, and return its tidy table, one row a cell and metric.

    What is given stands in place of the keys of `file`, or of the default sweep; `settings` holds any other key of a
    sweep file.  Results are kept in `out`, `results/local-…` by default, and their folder in the table's
    `attrs["results"]`.  A cell that fails is a warning.  Raises UsageError before anything is written.
    """
    began = time.perf_counter()
    named = {
        "checkpoint": checkpoint, "solvers": solvers, "nfe": nfe, "samples": samples, "seed": seed,
        "guidance": guidance, "precision": precision, "metrics": metrics, "latency": latency,
    }  # fmt: skip
    given = {k: list(v) if isinstance(v, range) else v for k, v in named.items() if v is not None}
    if twice := given.keys() & (settings or {}).keys():
        raise UsageError(f"settings: {min(twice)} is given twice")
    given |= settings or {}
    jobs = prepare_all(Path(file) if file else None, given, device, Path(out) if out else None, batch)
    shown = [repr(str(file))] * bool(file) + [f"{k}={v!r}" for k, v in given.items()]
    command, console = f"bench.sweep({', '.join(shown)})", Console(stderr=True, quiet=not progress)
    for failure in run_all(jobs, command, console, began):
        warnings.warn(f"failed: {failure.label}: {failure.cause}", RuntimeWarning, stacklevel=2)
    return Results(tuple(read_run(job.store) for job in jobs)).table


def load(folder: str | Path) -> "Results":
    """What a results folder holds, or all of those in it; raises UsageError when it holds none."""
    return Results(tuple(read_run(store) for store in stores(Path(folder))))


@dataclass(frozen=True)
class Results:
    """Runs, one a results folder; notebooks show their leaderboards and figures."""

    runs: tuple[Run, ...]

    @property
    def table(self) -> pd.DataFrame:
        """One row a cell and metric, and in `attrs` the folders."""
        table = pd.concat([run.table for run in self.runs], ignore_index=True) if self.runs[1:] else self.runs[0].table
        table.attrs["results"] = [str(run.store.folder) for run in self.runs]
        return table

    def board(self, metric: str | None = None, checkpoint: str | None = None) -> Styler:
        """Solvers against budgets, value ± standard error, by the best known metric if none is named.

        Bold is the best of its budget, and all that are not told apart from it.  Raises UnknownNameError.
        """
        runs = {str(run.definition["checkpoint"]): run for run in self.runs}
        run = runs.get(checkpoint or next(iter(runs)))
        if run is None:
            raise did_you_mean("checkpoint", str(checkpoint), list(runs))
        metrics = metrics_of(run.board)
        if metric and metric not in metrics:
            raise did_you_mean("metric", metric, metrics)
        return _styled(run, metric or metrics[0])

    def __repr__(self) -> str:
        """A line a run."""
        return "\n".join(
            f"{run.store.folder}: {run.definition['checkpoint']}, {len(run.records)} cells, "
            f"{', '.join(metrics_of(run.board))}"
            for run in self.runs
        )

    def _repr_html_(self) -> str:
        """Of each run its first metric's board and its figures, all inline."""
        return "".join(_html(run) for run in self.runs)


def _html(run: Run) -> str:
    name = escape(str(run.definition["checkpoint"]))
    figures = [run.store.folder / figure for figure in FIGURES if (run.store.folder / figure).exists()]
    pictures = [
        f'<img alt="{name}: {path.stem} against network calls" style="max-width: 100%" '
        f'src="data:image/png;base64,{b64encode(path.read_bytes()).decode()}">'
        for path in figures
    ]
    return f"<h3>{name}</h3>{_styled(run, metrics_of(run.board)[0]).to_html()}{''.join(pictures)}"


def _styled(run: Run, metric: str) -> Styler:
    """A metric's rows as a table of solvers, students last, against budgets."""
    rows = run.board[run.board["metric"] == metric]
    first, names = rows.iloc[0], student_names(rows)
    lines = rows.assign(
        last=of_students(rows),
        name=rows["solver"]
        .map(lambda name: names.get(name, name))
        .where(~rows["adaptive"], rows["solver"] + rows["nfe"].map(" ({:g} calls)".format)),
        budget=rows["nfe"].map("{:g}".format).where(~rows["adaptive"], "adaptive"),
        text=[with_error(*pair) for pair in zip(rows["value"], rows["se"], strict=True)],
        bold=among_best(rows),
    )
    order = lines.sort_values(["last", "name"])["name"].unique()
    budgets = lines.sort_values(["adaptive", "nfe"])["budget"].unique()
    text, bold = (lines.pivot(index="name", columns="budget", values=k).loc[order, budgets] for k in ("text", "bold"))
    weights = bold.eq(True).map({True: "font-weight: bold", False: ""}.get)
    about = f"{title(metric)}, {BETTER[first['better']]}; n = {first['n']:,}, {seeds_of(first['score'])}"
    caption = f"{about}.  Value ± standard error; bold: the best of its budget, and what is not told apart from it."
    caption += f" {MARK.strip()}: a distilled student." * bool(names)
    return (
        text.rename_axis(index="solver", columns="network calls").style.format(na_rep="—", escape="html")
        .format_index(escape="html").apply(lambda _: weights, axis=None).set_caption(escape(caption))
        .set_table_styles(LOOKS)
    )  # fmt: skip
