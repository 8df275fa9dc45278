"""What tuning bought and what it cost: paired ratios to the untuned base, error against search cost, tuning curves."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import NDArray

from bench.report.plots import COLOURS, LINES, MARKERS, STYLE, save
from bench.report.scores import series_of
from bench.report.text import brief, listed, shown
from bench.stats import spread
from bench.store import Record

PAIRED = "trajectory_rmse"
PANELS = 6  # budgets shown in a figure, the smallest
SEARCHED = 300  # calls; from zero to here the axis of the search's cost is linear


def tuning_columns(record: Record) -> dict[str, object]:
    """What stands beside the NFE in the tidy table: calls spent on learning (on one sample each), from and for what."""
    learned = record["cell"].get("learned_from") or {}
    return {
        "tuning_calls": learned.get("calls", 0),
        "tuning_base": learned.get("base", ""),
        "tuning_objective": learned.get("objective", ""),
        "tuning_guidance": learned.get("guidance"),
    }


def ratios(records: Sequence[Record]) -> pd.DataFrame:
    """Trajectory errors of tuned solvers over their bases', by the same noise, over seeds: ratio and standard error.

    What set out from no solver, or from one that was not run, is compared with the best untuned one of its budget.
    The logarithm of a ratio has the parts of both values over the values, one less the other.
    """
    rows = []
    for record in records:
        cell, a = record["cell"], _error(record)
        learned = cell.get("learned_from")
        untuned = {
            _plain(r["cell"]["solver"]): error
            for r in records
            if _place(r) == _place(record) and not r["cell"].get("learned_from") and (error := _error(r))
        }
        if a is None or not learned or not untuned:
            continue
        there = _plain(learned["base"]) in untuned
        b = untuned[_plain(learned["base"])] if there else min(untuned.values(), key=lambda error: error[0])
        ratio, se = a[0] / b[0], spread(a[1] / a[0] - b[1] / b[0])
        base = learned["base"] if there else "the best untuned"
        rows.append({"solver": series_of(record), "nfe": cell["nfe"], "base": base, "ratio": ratio, "se": ratio * se})
    if not rows:
        return pd.DataFrame()
    seeds = pd.DataFrame(rows).groupby(["solver", "nfe", "base"], as_index=False)
    return seeds.agg(ratio=("ratio", "mean"), se=("se", lambda se: np.sqrt((se**2).sum()) / len(se)))


def _place(record: Record) -> tuple[int | None, int, str]:
    """Budget, seed and what the sweep has several of beside: what a comparison must have in common."""
    cell = record["cell"]
    return cell["nfe"], cell["seed"], series_of(record).removeprefix(cell["solver"])


def _plain(solver: str) -> str:
    return solver.replace(" ", "")


def _error(record: Record) -> tuple[float, NDArray[np.float64]] | None:
    """A record's trajectory error and its parts."""
    found = [(v["value"], np.array(v["parts"])) for v in record["metrics"] if v["metric"] == PAIRED and "parts" in v]
    return found[0] if found else None


def write_tuning_plots(table: pd.DataFrame, records: Sequence[Record], folder: Path) -> list[Path]:
    """search_cost and tuning_curves of a run that has tuned solvers; returns the files."""
    rows = table[table["metric"] == PAIRED]
    if rows.empty or not (rows["tuning_calls"] > 0).any():
        return []
    styles = dict(_styles(sorted(rows[rows["tuning_calls"] > 0]["solver"].unique())))
    first = rows.iloc[0]
    about = f"{first['checkpoint']}, guidance {listed(rows['guidance'])}"
    with mpl.rc_context(STYLE):
        written = save(folder / "search_cost", _search_cost(rows, styles, about))
        if curves := _curves(records):
            written += save(folder / "tuning_curves", _tuning_curves(curves, styles, about))
    return written


def _styles(names: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Each solver's look, the same in all figures of a run."""
    for i, name in enumerate(names):
        n = len(COLOURS)
        yield name, {"color": COLOURS[i % n], "marker": MARKERS[(i + i // n) % n], "linestyle": LINES[i // n % 3]}


def _figure(panels: int, title: str) -> tuple[Figure, list[Axes]]:
    across = min(panels, 3)
    figure = Figure(figsize=(4.2 * across + 3, 4 * -(-panels // across) + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=12)
    axes = list(np.ravel(figure.subplots(-(-panels // across), across, sharey=True)))
    for spare in axes[panels:]:
        spare.set_visible(False)
    return figure, axes[:panels]


def _search_cost(rows: pd.DataFrame, styles: Mapping[str, dict[str, str]], about: str) -> Figure:
    """A panel a budget; untuned solvers stand at zero, and only the best few of them are named."""
    tuned = rows[rows["tuning_calls"] > 0]
    tried = tuned.groupby("nfe")["solver"].nunique()
    budgets = sorted(tried[2 * tried >= tried.max()].index)[
        :PANELS
    ]  # tables serve budgets at which nothing else learned
    n = rows["n"].iloc[0]
    figure, panels = _figure(len(budgets), f"Error against what was spent on learning: {about}, n = {n}")
    for axes, nfe in zip(panels, budgets, strict=True):
        here = rows[rows["nfe"] == nfe]
        untuned = here[here["tuning_calls"] == 0].sort_values("value")
        bars = {"fmt": "o", "color": "#999999", "markersize": 4, "label": "untuned solvers"}
        axes.errorbar([0] * len(untuned), untuned["value"], 2 * untuned["se"], **bars)
        for best in untuned.head(1).itertuples():
            place = {"textcoords": "offset points", "xytext": (6, -14), "fontsize": 10, "color": "#666666"}
            axes.annotate(best.solver, (0, best.value), **place)
            axes.axhline(best.value, color="#bbbbbb", linewidth=0.8, zorder=0)
        for row in here[here["tuning_calls"] > 0].itertuples():
            look = styles[row.solver] | {"linestyle": "none", "capsize": 3, "markersize": 8}
            axes.errorbar([row.tuning_calls], [row.value], 2 * row.se, label=shown(row.solver), **look)
        axes.set_title(f"{nfe:g} calls", fontsize=12)
        axes.set_xscale("symlog", linthresh=SEARCHED)
        axes.set_xlim(-SEARCHED / 6, here["tuning_calls"].max() * 1.6)
        _cost_axis(axes)
    figure.supylabel("RMSE to the exact ODE solution (±2 s.e.)", fontsize=12)
    _legend(figure, panels)
    return figure


def _curves(records: Sequence[Record]) -> dict[int, dict[str, np.ndarray]]:
    """For each budget, each tuned solver's (calls, error) as its search went on."""
    found: dict[int, dict[str, np.ndarray]] = {}
    for record in records:
        learned = record["cell"].get("learned_from")
        if learned and len(learned["curve"]) > 1 and learned["nfe"] is not None:
            found.setdefault(record["cell"]["nfe"], {})[series_of(record)] = np.array(learned["curve"])
    return dict(sorted(found.items())[:PANELS])


def _tuning_curves(
    curves: Mapping[int, Mapping[str, np.ndarray]], styles: Mapping[str, dict[str, str]], about: str
) -> Figure:
    figure, panels = _figure(len(curves), f"Error on the samples learned from, as calls are spent: {about}")
    for axes, (nfe, of_budget) in zip(panels, curves.items(), strict=True):
        for name, curve in of_budget.items():
            axes.plot(curve[:, 0], curve[:, 1], label=shown(name), markersize=5, drawstyle="steps-post", **styles[name])
        axes.set_title(f"{nfe:g} calls", fontsize=12)
        axes.set_xscale("log")
        _cost_axis(axes)
    figure.supylabel("RMSE to the reference solution", fontsize=12)
    _legend(figure, panels)
    return figure


def _cost_axis(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.set_xlabel("evaluations of one sample, spent on learning")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda calls, _: brief(calls)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One for all panels, each name once."""
    named = {name: handle for axes in panels for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="outside right center", fontsize=11)
