"""The figures of a run, each as PNG, SVG and PDF."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, LogLocator, NullFormatter, NullLocator

from bench.files import write_atomically
from bench.report.scores import among_best, seeds_of
from bench.report.text import cut, of_students, short_names
from bench.report.titles import axis_label, metrics_of, title

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]  # Okabe & Ito 2008
MARKERS = "osD^vPX"
LINES = ("-", "--", ":")
LEGEND_LINE = 0.25  # inches
LETTER = 0.014  # half of a letter's width, in widths of a panel
WIDE = 5000  # ratio of the ends of an axis on which there is room for decades only
PANELS = 6  # metrics in a figure, the best known; tables hold all
APART, NAMED = 14, 12  # solvers that are told apart in a figure; of more, so many have a name and colour
FAR = 20  # times the best of the budget where that is largest: farther up nothing is drawn of many solvers
UNNAMED, GREY = "others", "#c4c4c4"
OTHERS = {"color": GREY, "linestyle": "-", "linewidth": 0.7, "elinewidth": 0, "zorder": 1}
LONGEST = 40  # letters of a solver's name
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
    "pdf.fonttype": 42,  # TrueType: journals refuse Type 3
}


def write_plots(table: pd.DataFrame, folder: Path) -> list[Path]:
    """quality and truncation figures of a table over seeds (bench.report.scores); returns the files."""
    table = with_looks(table)
    quality = [m for m in metrics_of(table) if not m.startswith("trajectory")]
    with mpl.rc_context(STYLE):
        written = save(folder / "quality", figure_of(table, quality[:PANELS], against_nfe)) if quality else []
        if errors := [m for m in metrics_of(table) if m.startswith("trajectory_rmse")]:
            written += save(folder / "truncation", figure_of(table, errors[:1], _truncation))
    return written


def with_looks(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its solvers as categories, students last: looks go by place, and students change no solver's.

    The column `named` says who has a look of its own: all, or of many solvers some (`named_solvers`) and the students.
    """
    own = of_students(table)
    table = table.assign(last=own, named=own | table["solver"].isin(named_solvers(table[~own])))
    names = table.sort_values(["named", "last", "solver"], ascending=[False, True, True])["solver"].unique()
    labels = {name: cut(text, LONGEST) for name, text in short_names(names).items()}
    label = table["solver"].map(labels).where(table["named"], UNNAMED)
    return table.assign(solver=pd.Categorical(table["solver"], names), label=label)


def named_solvers(table: pd.DataFrame) -> list[str]:
    """The solvers of a table over seeds that figures name: all, or of more than APART those that are best most often.

    Every budget, by every metric, is one point, which those that are not told apart from its best share.
    """
    names = sorted(table["solver"].unique())
    if len(names) <= APART:
        return names
    best = [rows[among_best(rows)] for _, rows in table[~table["adaptive"]].groupby("metric")]
    shares = [1 / rows.groupby("nfe")["solver"].transform("size") for rows in best]
    points = pd.concat(shares).groupby(pd.concat(best)["solver"]).sum()
    return sorted(points.sort_values(ascending=False, kind="stable").index[:NAMED])


def figure_of(table: pd.DataFrame, metrics: list[str], draw: Callable[[Axes, pd.DataFrame], None]) -> Figure:
    """One panel a metric, one legend for all."""
    across, down = min(len(metrics), 3), -(-len(metrics) // 3)
    there = table[table["metric"].isin(metrics)].drop_duplicates("solver")
    named, others = there["named"].sum(), (~there["named"]).sum()
    height = 0.4 + max(4.8 * down, LEGEND_LINE * (named + 6))  # and a title, a front, a window, others
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
    entries = {n: h for axes in panels for h, n in zip(*axes.get_legend_handles_labels(), strict=True)}
    why = f"cut off: {FAR} times the best and more" if others else ""
    if grey := entries.pop(UNNAMED, None):
        entries[f"{others} {UNNAMED}"] = grey
        why = f"named: most often the best of a budget,\nor not told apart from it, by any metric;\n{why}"
    legend = figure.legend(entries.values(), entries.keys(), loc="outside right center", fontsize=11, title=why)
    legend.get_title().set_fontsize(10)
    return figure


def curves(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, dict[str, Any]]]:
    """Each solver's label and rows in order of NFE, and how its bars and line look in all figures of the table.

    Those that are not named are thin and grey, under one label.
    """
    names = rows["solver"].cat.categories
    for name, of_solver in rows.groupby("solver", sort=True, observed=True):
        i, n = names.get_loc(name), len(COLOURS)
        style = {"color": COLOURS[i % n], "marker": MARKERS[(i + i // n) % n], "linestyle": LINES[i // n % len(LINES)]}
        first = of_solver.iloc[0]
        grey = OTHERS | {"marker": "." if len(of_solver) == 1 else ""}  # a point alone is no line
        yield first["label"], of_solver.sort_values("nfe"), style | {"capsize": 3} if first["named"] else grey


def against_nfe(axes: Axes, rows: pd.DataFrame) -> None:
    for name, of_solver, style in curves(rows):
        axes.errorbar(of_solver["nfe"], of_solver["value"], 2 * of_solver["se"], label=name, **style)
    axes.set(xscale="log", xlabel="network calls (NFE)", ylabel=f"{axis_label(rows['metric'].iloc[0])} (±2 s.e.)")
    plain_ticks(axes, rows, rows[~rows["adaptive"]]["nfe"])


def _truncation(axes: Axes, rows: pd.DataFrame) -> None:
    label = "RMSE to the exact ODE solution (±2 s.e.)"
    if rows["nfe"].nunique() > 2:
        label += "\nslope: fit over each curve's upper half"
    for name, of_solver, style in curves(rows):
        late = of_solver[of_solver["nfe"] >= of_solver["nfe"].median()]
        slope = f", slope {_slope(late):.1f}" if len(late) > 1 and of_solver["named"].iloc[0] else ""
        axes.errorbar(of_solver["nfe"], of_solver["value"], 2 * of_solver["se"], label=name + slope, **style)
    axes.set(xscale="log", xlabel="network calls (NFE)", ylabel=label)
    plain_ticks(axes, rows, rows[~rows["adaptive"]]["nfe"])


def _slope(rows: pd.DataFrame) -> float:
    return float(np.polyfit(np.log(rows["nfe"]), np.log(rows["value"]), 1)[0])


def plain_ticks(axes: Axes, rows: pd.DataFrame, budgets: pd.Series | None = None) -> None:
    """Plain numbers on both axes, values on a log scale where they are distances; the budgets on the axis of NFE."""
    if budgets is not None:
        labels = _apart(sorted(budgets.unique()), rows["nfe"].max() / rows["nfe"].min())
        axes.xaxis.set_major_locator(FixedLocator(list(labels)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FixedFormatter(list(labels.values())))
    else:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    if rows["better"].iloc[0] == "lower" and (rows["value"] > 0).all():
        low, high = rows["value"].min() / 2, rows["value"].max()  # bars that reach 0 have no end on a log axis
        axes.set_yscale("log")
        axes.set_ylim(bottom=low)
        if not rows["named"].all():
            high = FAR * rows[~(rows["adaptive"] | of_students(rows))].groupby("nfe")["value"].min().max()
            axes.set_ylim(top=high)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < WIDE * low else (1,), numticks=20))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def _apart(budgets: Sequence[float], span: float) -> dict[float, str]:
    """Labels of budgets on a logarithmic axis from 1 to `span`; none for one that would touch the label before."""
    labels: dict[float, str] = {}
    last = 0.0
    for nfe in budgets:
        text = f"{nfe:g}"
        before = labels.get(last, "")
        clear = not before or np.log(nfe / last) >= LETTER * (len(before) + len(text) + 0.3) * np.log(span)
        labels[nfe] = text if clear else ""
        last = nfe if clear else last
    return labels


def save(path: Path, figure: Figure) -> list[Path]:
    """PNG for people, SVG and PDF for papers, without a date so that equal data gives equal files."""
    files = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    for suffix, metadata in files.items():
        write = partial(figure.savefig, format=suffix[1:], dpi=130, metadata=metadata)
        write_atomically(path.with_suffix(suffix), write)
        figure.set_layout_engine("none")  # the places found for the first are the others' too, and dear to find
    return [path.with_suffix(suffix) for suffix in files]
