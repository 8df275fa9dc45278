"""The figures of a run, each as PNG and SVG."""

from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator

from bench.report.scores import seeds_of
from bench.report.text import of_students, shown
from bench.report.titles import axis_label, metrics_of, title

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]  # Okabe & Ito 2008
MARKERS = "osD^vPX"
LINES = ("-", "--", ":")
LEGEND_LINE = 0.25  # inches
PANELS = 6  # metrics in a figure, the best known; tables hold all
STYLE = {
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.hashsalt": "fewstep",
    "svg.fonttype": "none",
}


def write_plots(table: pd.DataFrame, folder: Path) -> list[Path]:
    """quality and truncation figures of a table over seeds (bench.report.scores); returns the files."""
    table = with_looks(table)
    quality = [m for m in metrics_of(table) if not m.startswith("trajectory")]
    with mpl.rc_context(STYLE):
        written = save(folder / "quality", figure_of(table, quality[:PANELS], _against_nfe)) if quality else []
        if errors := [m for m in metrics_of(table) if m.startswith("trajectory_rmse")]:
            written += save(folder / "truncation", figure_of(table, errors[:1], _truncation))
    return written


def with_looks(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its solvers as categories, students last: looks go by place, and students change no solver's."""
    names = table.assign(last=of_students(table)).sort_values(["last", "solver"])["solver"].unique()
    return table.assign(solver=pd.Categorical(table["solver"], names))


def figure_of(table: pd.DataFrame, metrics: list[str], draw: Callable[[Axes, pd.DataFrame], None]) -> Figure:
    """One panel a metric, one legend for all."""
    across, down = min(len(metrics), 3), -(-len(metrics) // 3)
    height = 0.4 + max(4.8 * down, LEGEND_LINE * table["solver"].nunique())
    figure = Figure(figsize=(3 + 5.5 * across, height), layout="constrained")
    first = table.iloc[0]
    figure.suptitle(f"{first['checkpoint']}, {seeds_of(first['score'])}", fontsize=12)
    panels = list(np.ravel(figure.subplots(down, across)))
    for spare in panels[len(metrics) :]:
        spare.set_visible(False)
    for axes, metric in zip(panels, metrics, strict=False):
        rows = table[table["metric"] == metric]
        draw(axes, rows)
        axes.set_title(f"{title(metric)} (n = {rows['n'].iloc[0]:,})", fontsize=12)
    named = {n: h for axes in panels for h, n in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="outside right center", fontsize=11)
    return figure


def curves(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, dict[str, str]]]:
    """Each solver's rows in order of NFE, with the colour, marker and line that it has in all figures of the table."""
    names = rows["solver"].cat.categories
    for name, of_solver in rows.groupby("solver", sort=True, observed=True):
        i, n = names.get_loc(name), len(COLOURS)
        style = {"color": COLOURS[i % n], "marker": MARKERS[(i + i // n) % n], "linestyle": LINES[i // n % len(LINES)]}
        yield shown(str(name)), of_solver.sort_values("nfe"), style


def _against_nfe(axes: Axes, rows: pd.DataFrame) -> None:
    for name, of_solver, style in curves(rows):
        axes.errorbar(of_solver["nfe"], of_solver["value"], 2 * of_solver["se"], label=name, capsize=3, **style)
    axes.set(xscale="log", xlabel="network calls (NFE)", ylabel=f"{axis_label(rows['metric'].iloc[0])} (±2 s.e.)")
    plain_ticks(axes, rows, rows[~rows["adaptive"]]["nfe"])


def _truncation(axes: Axes, rows: pd.DataFrame) -> None:
    label = "RMSE to the exact ODE solution (±2 s.e.)"
    if rows["nfe"].nunique() > 2:
        label += "\nslope: fit over each curve's upper half"
    for name, of_solver, style in curves(rows):
        late = of_solver[of_solver["nfe"] >= of_solver["nfe"].median()]
        slope = f", slope {_slope(late):.1f}" if len(late) > 1 else ""
        axes.errorbar(of_solver["nfe"], of_solver["value"], 2 * of_solver["se"], label=name + slope, capsize=3, **style)
    axes.set(xscale="log", xlabel="network calls (NFE)", ylabel=label)
    plain_ticks(axes, rows, rows[~rows["adaptive"]]["nfe"])


def _slope(rows: pd.DataFrame) -> float:
    return float(np.polyfit(np.log(rows["nfe"]), np.log(rows["value"]), 1)[0])


def plain_ticks(axes: Axes, rows: pd.DataFrame, budgets: pd.Series | None = None) -> None:
    """Plain numbers on both axes, values on a log scale where they are distances; the budgets on the axis of NFE."""
    if budgets is not None:
        axes.xaxis.set_major_locator(FixedLocator(sorted(budgets.unique())))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    if rows["better"].iloc[0] == "lower" and (rows["value"] > 0).all():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(bottom=rows["value"].min() / 2)  # bars that reach 0 have no end on a log axis


def save(path: Path, figure: Figure) -> list[Path]:
    """PNG for people, SVG for papers, both without a date so that equal data gives equal files."""
    files = [path.with_suffix(".png"), path.with_suffix(".svg")]
    figure.savefig(files[0], dpi=130, metadata={"Software": None})
    figure.savefig(files[1], metadata={"Date": None})
    return files
