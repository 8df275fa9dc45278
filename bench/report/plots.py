"""The figures of a run, each as PNG and SVG."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator

from bench.report.leaderboard import batches_of, metrics_of, title

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]  # Okabe & Ito 2008
MARKERS = "osD^vPX"
LINES = ("-", "--", ":")
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
    """quality, latency and truncation figures of a tidy table; returns the files."""
    table = table.assign(solver=table["solver"].astype("category"))
    quality = [m for m in metrics_of(table) if m.startswith("frechet")]
    with mpl.rc_context(STYLE):
        written = save(folder / "quality", _panels(table, quality, _against_nfe)) if quality else []
        if "trajectory_rmse" in set(table["metric"]):
            written += save(folder / "truncation", _panels(table, ["trajectory_rmse"], _truncation))
        if quality and batches_of(table):
            written += save(folder / "latency", _panels(table, quality[:1], _against_latency))
    return written


def _panels(table: pd.DataFrame, metrics: list[str], draw: Callable[[Axes, pd.DataFrame], None]) -> Figure:
    """One panel a metric, one legend for all."""
    figure = Figure(figsize=(3 + 5.5 * len(metrics), 5.2), layout="constrained")
    first = table.iloc[0]
    figure.suptitle(f"{first['checkpoint']}, seed {first['seed']}", fontsize=12)
    for axes, metric in zip(np.ravel(figure.subplots(1, len(metrics))), metrics, strict=True):
        rows = table[table["metric"] == metric]
        draw(axes, rows)
        axes.set_title(f"{title(metric)} (n = {rows['n'].iloc[0]:,})", fontsize=12)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", fontsize=11)
    return figure


def _curves(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, dict[str, str]]]:
    """Each solver's rows in order of NFE, with the colour, marker and line that it has in all figures of the table."""
    names = rows["solver"].cat.categories
    for name, of_solver in rows.groupby("solver", sort=True, observed=True):
        i, n = names.get_loc(name), len(COLOURS)
        style = {"color": COLOURS[i % n], "marker": MARKERS[(i + i // n) % n], "linestyle": LINES[i // n % len(LINES)]}
        yield shown(str(name)), of_solver.sort_values("nfe"), style


def shown(solver: str) -> str:
    """The solver as a legend has room for it: a plug-in without its folder."""
    return re.sub(r"^[^(]*/", "", solver)


def _against_nfe(axes: Axes, rows: pd.DataFrame) -> None:
    for name, of_solver, style in _curves(rows):
        axes.errorbar(of_solver["nfe"], of_solver["value"], 2 * of_solver["se"], label=name, capsize=3, **style)
    axes.set(xscale="log", yscale="log", xlabel="network calls (NFE)", ylabel="Fréchet distance (±2 s.e.)")
    _plain_ticks(axes, rows["value"].min(), rows[~rows["adaptive"]]["nfe"])


def _truncation(axes: Axes, rows: pd.DataFrame) -> None:
    for name, of_solver, style in _curves(rows):
        late = of_solver[of_solver["nfe"] >= of_solver["nfe"].median()]
        slope = f", slope {_slope(late):.1f}" if len(late) > 1 else ""
        axes.errorbar(of_solver["nfe"], of_solver["value"], 2 * of_solver["se"], label=name + slope, capsize=3, **style)
    axes.set(xscale="log", yscale="log", xlabel="network calls (NFE)")
    axes.set_ylabel("RMSE to the exact ODE solution (±2 s.e.)\nslope: fit over each curve's upper half")
    _plain_ticks(axes, rows["value"].min(), rows[~rows["adaptive"]]["nfe"])


def _slope(rows: pd.DataFrame) -> float:
    return float(np.polyfit(np.log(rows["nfe"]), np.log(rows["value"]), 1)[0])


def _against_latency(axes: Axes, rows: pd.DataFrame) -> None:
    """Milliseconds a sample at the large batch; the Pareto front is what nothing beats in both."""
    batch = batches_of(rows)[-1]
    rows = rows.assign(ms=rows[f"latency_batch{batch}_ms"] / batch)
    for name, of_solver, style in _curves(rows):
        line = {"linewidth": 1, "capsize": 3, "label": name}
        axes.errorbar(of_solver["ms"], of_solver["value"], 2 * of_solver["se"], **line, **style)
    front = rows.sort_values("ms")
    front = front[front["value"] < front["value"].cummin().shift(fill_value=np.inf)]
    axes.plot(front["ms"], front["value"], color="#888888", zorder=0, drawstyle="steps-post", label="Pareto front")
    for point in front.itertuples():  # labels at all points would overlap
        place = {"textcoords": "offset points", "xytext": (4, -13), "fontsize": 10}
        axes.annotate(f"{point.nfe:.3g}", (point.ms, point.value), **place)
    axes.set(xscale="log", yscale="log", xlabel=f"milliseconds a sample, batch {batch}; numbers: NFE on the front")
    axes.set_ylabel("Fréchet distance (±2 s.e.)")
    _plain_ticks(axes, rows["value"].min())


def _plain_ticks(axes: Axes, lowest: float, budgets: pd.Series | None = None) -> None:
    """Plain numbers on log axes down to half the lowest value; the budgets themselves on the axis of NFE."""
    if budgets is not None:
        axes.xaxis.set_major_locator(FixedLocator(sorted(budgets.unique())))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.set_ylim(bottom=lowest / 2)  # bars that reach 0 have no end on a log axis


def save(path: Path, figure: Figure) -> list[Path]:
    """PNG for people, SVG for papers, both without a date so that equal data gives equal files."""
    files = [path.with_suffix(".png"), path.with_suffix(".svg")]
    figure.savefig(files[0], dpi=130, metadata={"Software": None})
    figure.savefig(files[1], metadata={"Date": None})
    return files
