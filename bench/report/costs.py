"""What cells cost: columns of the tidy table, sections of the leaderboard, the figure of quality against latency.

A speed counts only where the quality lies in the sweep's window, if it has one.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from bench.report.plots import STYLE, curves, figure_of, plain_ticks, save, with_looks
from bench.report.text import counted, grid, rounded, significant
from bench.report.titles import axis_label, metrics_of
from bench.store import Record

COUNTS, ABOVE, BELOW, UNJUDGED = "counts", "does not count: above", "does not count: below", "not judged"
ARROWS = {ABOVE: "↑", BELOW: "↓", UNJUDGED: "?"}
POINTS = {"linestyle": "none", "marker": ".", "markersize": 4}  # lines of many solvers against time only cross
AT = ("batch1", "best")  # batch 1, and the batch of best throughput


def cost_columns(measurement: Record | None) -> dict[str, object]:
    """Of a cell's measurement: milliseconds at batch 1 and at the best batch, throughput, memory, whose session."""
    if measurement is None:
        return {}
    session, memory, timed = measurement["session"], measurement["memory"], measurement["latency"]
    columns: dict[str, object] = {}
    for at, k in zip(AT, (0, -1), strict=True):
        columns[f"latency_{at}_ms"] = timed[k]["median_ms"]
        columns |= {f"latency_{at}_{name}": timed[k][name] for name in ("iqr_ms", "p90_ms", "cpu_ms")}
        columns[f"network_{at}_ms"] = timed[k]["network_ms"]
        columns[f"solver_overhead_{at}_ms"] = timed[k]["overhead_ms"]
        columns[f"solver_overhead_{at}_iqr_ms"] = timed[k]["overhead_iqr_ms"]
        columns |= {f"apart_{name}_{at}_ms": works[k]["median_ms"] for name, works in session["apart"].items()}
    return columns | {
        "best_batch": timed[-1]["batch"],
        "throughput_per_s": timed[-1]["samples_per_s"],
        "memory_of": memory["of"],
        "peak_memory_mib": memory["peak_mib"],
        "memory_above_weights_mib": memory["above_weights_mib"],
        "memory_reserved_above_weights_mib": memory.get("reserved_above_weights_mib"),
        "rounds": session["rounds"],
        "measured_on": session["machine"]["device"],
        "measured_threads": session["machine"]["threads"],
        "session": session["id"],
    }


def judged(table: pd.DataFrame, window: Mapping[str, Any] | None) -> pd.DataFrame:
    """The table with the column `speed`: whether a cell's speed counts, by its value of the window's metric."""
    if window is None:
        return table.assign(speed=UNJUDGED)
    value = table["key"].map(table[table["metric"] == window["metric"]].set_index("key")["value"])
    outside = np.where(value > window["high"], ABOVE, BELOW)
    verdict = np.where(value.between(window["low"], window["high"]), COUNTS, outside)
    return table.assign(speed=np.where(value.isna(), UNJUDGED, verdict))


def is_measured(table: pd.DataFrame) -> bool:
    return "session" in table


def costs(table: pd.DataFrame, window: Mapping[str, Any] | None) -> list[str]:
    """Sections of the leaderboard: latency and what of it is the solver's own, throughput, memory."""
    if not is_measured(table):
        return []
    cells = table[~table["adaptive"] & table["session"].notna()].drop_duplicates("key")
    if cells.empty:
        return []
    best = " or ".join(f"{batch:.0f}" for batch in sorted(cells["best_batch"].unique()))
    parts = ["## Costs", _about(cells, best)] + ([_about_window(window)] if window else [])
    for at, batch in zip(AT, ("1", best), strict=True):
        spread = (cells[f"latency_{at}_iqr_ms"] / 2).map(rounded)
        parts += [
            f"### Latency, batch {batch}",
            "Median milliseconds of a whole trajectory ± half the interquartile range of its rounds.",
            _speeds(cells, window, cells[f"latency_{at}_ms"].map(significant) + " ± " + spread),
            "Of it the solver's own, percent of the network's time: what a trajectory takes beyond its network calls; "
            "median of differences within rounds ± half their interquartile range.",
            grid(cells, _overhead(cells, at)),
        ]
    parts += [f"### Throughput, batch {best}", "Samples a second."]
    return [*parts, _speeds(cells, window, cells["throughput_per_s"].map(significant)), *_memory(cells, best)]


def _about(cells: pd.DataFrame, best: str) -> str:
    """Where, how often and in how many sessions cells were measured."""
    first, rounds = cells.iloc[0], sorted(cells["rounds"].unique())
    lines = [
        f"Measured on {first['measured_on']}, {counted(first['measured_threads'], 'thread')}, in interleaved rounds, "
        f"{' or '.join(f'{n:.0f}' for n in rounds)} of each cell.  The batch of best throughput is {best}."
    ]
    if (sessions := cells["session"].nunique()) > 1:
        lines.append(
            f"**Numbers come from {sessions} sessions** (column `session`): drift between them favours some cells."
        )
    for column in [name for name in cells if name.startswith("apart_") and name.endswith("_batch1_ms")]:
        name = column.removeprefix("apart_").removesuffix("_batch1_ms")
        one, large = (significant(cells[f"apart_{name}_{at}_ms"].median()) for at in AT)
        lines.append(f"Beside the sampler, {name} takes {one} ms at batch 1 and {large} at batch {best}.")
    return "  ".join(lines)


def _about_window(window: Mapping[str, Any]) -> str:
    return (
        f"A speed counts where `{window['metric']}` lies between {window['low']:g} and {window['high']:g}; others are "
        "struck out, with an arrow that says on which side they lie, or a ? where the cell has no such number."
    )


def _speeds(cells: pd.DataFrame, window: Mapping[str, Any] | None, text: pd.Series) -> str:
    """A grid in which speeds that do not count are struck out; without a window all are shown as they are."""
    struck = "~~" + text + "~~ " + cells["speed"].map(ARROWS).fillna("")
    return grid(cells, text if window is None else text.where(cells["speed"] == COUNTS, struck))


def _overhead(cells: pd.DataFrame, at: str) -> pd.Series:
    percent = 100 / cells[f"network_{at}_ms"]
    spread = (percent * cells[f"solver_overhead_{at}_iqr_ms"] / 2).map("{:.1f}".format)
    return (percent * cells[f"solver_overhead_{at}_ms"]).map("{:+.1f}".format) + " ± " + spread


def _memory(cells: pd.DataFrame, best: str) -> list[str]:
    """Peaks above the weights'; of a GPU what was reserved too."""
    parts = [
        "### Peak memory",
        f"MiB above the weights' in a trajectory at batch {best} ({cells['memory_of'].iloc[0]}).",
        grid(cells, cells["memory_above_weights_mib"].map(significant)),
    ]
    if cells["memory_reserved_above_weights_mib"].notna().any():
        text = cells["memory_reserved_above_weights_mib"].map(significant)
        parts += ["MiB that the allocator reserved for it, above the weights'.", grid(cells, text)]
    return parts


def front(rows: pd.DataFrame) -> pd.DataFrame:
    """Of rows, fastest first, those that no faster one equals in quality; none where neither direction is better."""
    better = rows["better"].iloc[0] if len(rows) else "neither"
    if better == "neither":
        return rows[:0]
    best = rows["value"].cummin() if better == "lower" else rows["value"].cummax()
    return rows[best != best.shift()]


def write_latency_plot(table: pd.DataFrame, window: Mapping[str, Any] | None, folder: Path) -> list[Path]:
    """The figure of quality against milliseconds a sample, of a judged table over seeds; returns the files."""
    metrics = [m for m in metrics_of(table) if not m.startswith("trajectory")]
    if window and window["metric"] in set(table["metric"]):
        metrics = [window["metric"]]
    if not metrics or not is_measured(table):
        return []
    table = with_looks(table)  # before rows are left out
    with mpl.rc_context(STYLE):
        figure = figure_of(table[table["session"].notna()], metrics[:1], partial(against_latency, window=window))
        return save(folder / "latency", figure)


def against_latency(axes: Axes, rows: pd.DataFrame, window: Mapping[str, Any] | None) -> None:
    """The Pareto front, what nothing beats in both, is of the speeds that count; the others are hollow."""
    rows = rows.assign(ms=1e3 / rows["throughput_per_s"], counts=(rows["speed"] == COUNTS) | (window is None))
    for name, of_solver, style in curves(rows):
        line = {"linewidth": 1, "label": name}
        if not of_solver["named"].iloc[0]:
            style = style | POINTS
        axes.errorbar(of_solver["ms"], of_solver["value"], 2 * of_solver["se"], **line | style)
        hollow = of_solver[~of_solver["counts"]]
        axes.plot(
            hollow["ms"], hollow["value"], style["marker"], color=style["color"], markerfacecolor="white", zorder=3
        )
    best = front(rows[rows["counts"]].sort_values("ms"))
    if len(best):
        axes.plot(best["ms"], best["value"], color="#888888", zorder=0, drawstyle="steps-post", label="Pareto front")
    for point in best.drop_duplicates("nfe", keep="last").itertuples():  # labels at all points would overlap
        place = {"textcoords": "offset points", "xytext": (4, -13), "fontsize": 10}
        axes.annotate(f"{point.nfe:.3g}", (point.ms, point.value), **place)
    if window:
        axes.axhspan(window["low"], window["high"], color="#f0f0f0", zorder=-1, label="window of speeds that count")
    batch = " or ".join(f"{batch:.0f}" for batch in sorted(rows["best_batch"].unique()))
    axes.set(xscale="log", xlabel=f"milliseconds a sample, batch {batch}; numbers: NFE on the front")
    axes.set_ylabel(f"{axis_label(rows['metric'].iloc[0])} (±2 s.e.)")
    plain_ticks(axes, rows)
