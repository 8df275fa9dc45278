"""What students cost to train, and after how many samples they have paid for it: columns, section, figure."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf, isinf, isnan, nan
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes

from bench.report.plots import COLOURS, GREY, LINES, PANELS, STYLE, curves, figure_of, plain_ticks, save, with_looks
from bench.report.text import (
    MARK,
    brief,
    counted,
    cut,
    duration,
    markdown,
    of_students,
    shown,
    student_names,
    with_error,
)
from bench.report.titles import axis_label, metrics_of
from bench.stats import difference
from bench.store import Record

AXES = ("guidance", "dtype", "precision", "layout", "backend")  # a student compares with solvers that share them
APART = 0.4  # of the gap between two budgets: how far a budget's students are drawn beside each other
LONGEST = 18  # letters of a solver's name in the figure
DARK = "#666666"


def training_columns(record: Record) -> dict[str, object]:
    """Of a student's training: how, from what, network evaluations of one sample, seconds, memory, where."""
    about = record["cell"].get("training") or {}
    words = {f"training_{name}": about.get(name, "") for name in ("method", "teacher", "device")}
    numbers = {f"training_{name}": about.get(name, nan) for name in ("calls", "seconds", "threads")}
    return words | numbers | {"training_memory_mib": about.get("peak_memory_mib", nan)}


def of_trained(table: pd.DataFrame) -> pd.Series:
    """Which rows are of students whose training is known."""
    return of_students(table) & table["training_calls"].notna()


def paid_after(extra: float, saved: float) -> float:
    """Samples after which `extra`, spent beforehand, is earned by `saved` on each; infinite where nothing is saved.

    0 where nothing extra was spent: what the rival had learned cost more.
    """
    return max(extra, 0.0) / saved if saved > 0 else inf


@dataclass(frozen=True)
class BreakEven:
    """A student's cell and its rival, rows of a table over seeds; samples until it has paid, in calls and in time.

    Where no solver is as good, `rival` is the best of them and `calls` NaN; None where none shares the student's axes.
    `seconds` is NaN where the two were not timed where the student was trained.
    """

    student: pd.Series
    rival: pd.Series | None
    calls: float = nan
    seconds: float = nan


def break_evens(rows: pd.DataFrame) -> list[BreakEven]:
    """Of every student's cell whose training is known, in the rows of one metric."""
    trained = rows[of_trained(rows)].sort_values(["solver", "nfe"])
    return [break_even(student, rows[~of_students(rows)]) for _, student in trained.iterrows()]


def break_evens_of(table: pd.DataFrame) -> tuple[str | None, list[BreakEven]]:
    """Those of the first metric of which one direction is better, and the metric; None and nothing without one."""
    trained = table[of_trained(table)]
    metric = next((m for m in metrics_of(trained) if _better(trained, m) != "neither"), None)
    return metric, break_evens(table[table["metric"] == metric])


def break_even(student: pd.Series, solvers: pd.DataFrame) -> BreakEven:
    """Against the solver of equal or better quality that the student needs longest to have paid against.

    Among solvers that learned nothing that is the one of fewest forwards a sample.
    """
    sign = 1 if student["better"] == "lower" else -1
    for axis in AXES:
        alike = solvers[axis].isna() if pd.isna(student[axis]) else solvers[axis] == student[axis]
        solvers = solvers[alike]
    if solvers.empty:
        return BreakEven(student, None)
    solvers = solvers.assign(loss=sign * solvers["value"])
    differences = [difference(score.estimate, student["score"].estimate) for score in solvers["score"]]
    rivals = solvers[[d.tie or sign * d.value < 0 for d in differences]]
    if rivals.empty:
        return BreakEven(student, solvers.loc[solvers["loss"].idxmin()])
    extra = student["training_calls"] - rivals["tuning_calls"]
    saved = rivals["forwards_per_sample"] - student["forwards_per_sample"]
    rivals = rivals.assign(after=[paid_after(*pair) for pair in zip(extra, saved, strict=True)])
    by = ["after", "forwards_per_sample", "loss"]
    rival = rivals.sort_values(by, ascending=[False, True, True]).iloc[0]
    return BreakEven(student, rival, rival["after"], _in_seconds(student, rival))


def _in_seconds(student: pd.Series, rival: pd.Series) -> float:
    """Training seconds over those that a sample saves; NaN where both are not known for one device.

    What tuning took is known in calls alone.
    """
    timed = "session" in student and all(_timed_there(row, student) for row in (student, rival))
    if not timed or rival["tuning_calls"]:
        return nan
    return paid_after(student["training_seconds"], 1 / rival["throughput_per_s"] - 1 / student["throughput_per_s"])


def _timed_there(row: pd.Series, student: pd.Series) -> bool:
    """Whether a cell was measured where the student was trained: on a CPU, with as many threads."""
    there: str = student["training_device"]
    alike = row["measured_threads"] == student["training_threads"] or not there.startswith("CPU")
    return row["measured_on"] == there and alike


def students(table: pd.DataFrame) -> list[str]:
    """The section of a leaderboard, of a table over seeds; nothing where no student's training is known."""
    trained = table[of_trained(table)]
    if trained.empty:
        return []
    parts = [
        "## Students",
        f"What the training of each student{MARK} took, on top of its teacher's: calls are network evaluations of one "
        "sample, where a backward pass counts two; budgets are those of this sweep.",
        _trainings(trained, student_names(table)),
    ]
    metric, found = break_evens_of(table)
    if metric is None:
        return parts
    return [*parts, "### Break-even", _about(metric), _board(found, student_names(table))]


def _better(rows: pd.DataFrame, metric: str) -> str:
    return str(rows[rows["metric"] == metric]["better"].iloc[0])


def _trainings(trained: pd.DataFrame, names: dict[str, str]) -> str:
    head = ["student", "method", "teacher", "training calls", "time", "on", "peak memory", "budgets"]
    lines = [head, ["---"] * len(head)]
    for name, rows in trained.groupby("solver", sort=True, observed=True):
        about = rows.iloc[0]
        on = about["training_device"]
        if on.startswith("CPU"):
            on += f", {counted(about['training_threads'], 'thread')}"
        memory = about["training_memory_mib"]
        lines.append(
            [
                names[str(name)], about["training_method"], about["training_teacher"], brief(about["training_calls"]),
                duration(about["training_seconds"]), on, "—" if isnan(memory) else f"{memory:,.0f} MiB",
                ", ".join(f"{nfe:g}" for nfe in sorted(rows["nfe"].unique())),
            ]
        )  # fmt: skip
    return markdown(lines)


def _about(metric: str) -> str:
    return (
        "Images after which a student has paid for its training: training calls, less those that went into tuning the "
        "solver, over the forwards of the network that it saves on each image, against the solver of this sweep that "
        "it needs longest to pay against (of untuned ones, the cheapest) among those of its guidance and arithmetic "
        f"that are better in `{metric}` or within two standard errors of the paired difference.\n\n"
        "This favours solvers: one that is somewhat worse may pass as equal, and of many that are tried some will, so "
        "that a student may have paid earlier; more samples tell.  Never: it saves no forwards.  No solver here is as "
        "good: all are worse by more than two standard errors at every budget of the sweep, and the best of them "
        "stands beside.  By time: training seconds over the seconds saved on each image at the batch of best "
        "throughput, where the device of the training measured both cells, a CPU on as many threads; a dash elsewhere."
    )


def _board(found: Sequence[BreakEven], names: dict[str, str]) -> str:
    head = ["student", "calls", "value", "solver", "its calls", "its value", "forwards saved", "images", "by time"]
    return markdown([head, ["---"] * len(head), *(_line(each, names) for each in found)])


def _line(found: BreakEven, names: dict[str, str]) -> list[str]:
    student, rival = found.student, found.rival
    start = [names[student["solver"]], f"{student['nfe']:g}", with_error(student["value"], student["se"])]
    if rival is None:
        return [*start, f"none at guidance {student['guidance']:g}", *["—"] * 5]
    saved = rival["forwards_per_sample"] - student["forwards_per_sample"]
    place = [rival["solver"], f"{rival['nfe']:g}", with_error(rival["value"], rival["se"])]
    if isnan(found.calls):
        return [*start, *place, "—", "no solver here is as good", "—"]
    return [*start, *place, f"{saved:g}", images_until(found.calls), images_until(found.seconds)]


def images_until(after: float) -> str:
    """Images after which a cost is paid, as people read it."""
    if isnan(after):
        return "—"
    if isinf(after):
        return "never"
    return brief(ceil(after)) if after else "at once"


def write_students_plot(table: pd.DataFrame, folder: Path) -> list[Path]:
    """The figure of students among solvers, of a table over seeds; nothing where no student's training is known."""
    if not of_trained(table).any():
        return []
    table = with_looks(table)
    metrics = metrics_of(table[of_students(table)])
    with mpl.rc_context(STYLE):
        return save(folder / "students", figure_of(table, metrics[:PANELS], against_solvers))


def against_solvers(axes: Axes, rows: pd.DataFrame) -> None:
    """Solvers are thin and grey, the best of each budget named; students of a budget stand beside each other."""
    mine = of_students(rows)
    solvers, own = rows[~mine & ~rows["adaptive"]], rows[mine]
    for _, of_solver, _ in curves(solvers):
        axes.plot(of_solver["nfe"], of_solver["value"], color=GREY, linewidth=0.9, zorder=1, label="solvers")
    names = list(own["solver"].cat.remove_unused_categories().cat.categories)
    look = {"linewidth": 0.8, "markersize": 8, "markeredgecolor": "white", "markeredgewidth": 0.6}
    for name, of_student, style in curves(own):
        place = names.index(of_student["solver"].iloc[0])
        line = LINES[place // len(COLOURS) % len(LINES)]  # the colours begin again
        beside = np.exp(_width(own) * ((place + 0.5) / len(names) - 0.5))
        x, bars = beside * of_student["nfe"], 2 * of_student["se"]
        axes.errorbar(x, of_student["value"], bars, label=name, zorder=3, **style | look | {"linestyle": line})
    axes.set(xscale="log", xlabel="network calls (NFE)", ylabel=f"{axis_label(rows['metric'].iloc[0])} (±2 s.e.)")
    plain_ticks(axes, rows, rows[~rows["adaptive"]]["nfe"])
    _name_best(axes, solvers)


def _width(own: pd.DataFrame) -> float:
    """The width, on the logarithmic axis, over which a budget's students are spread."""
    budgets = np.sort(own["nfe"].unique())
    return APART * float(np.diff(np.log(budgets)).min(initial=np.log(2)))


def _name_best(axes: Axes, solvers: pd.DataFrame) -> None:
    """The best solver of each budget, named where it is another than at the budget before."""
    if solvers.empty or solvers["better"].iloc[0] == "neither":
        return
    lower = solvers["better"].iloc[0] == "lower"
    by_budget = solvers.groupby("nfe")["value"]
    best = solvers.loc[by_budget.idxmin() if lower else by_budget.idxmax()]
    axes.plot(best["nfe"], best["value"], color=DARK, linewidth=1.2, marker=".", zorder=2, label="the best of them")
    outline = [patheffects.withStroke(linewidth=3, foreground="white")]
    look = {"rotation": 90, "ha": "center", "fontsize": 11, "color": DARK, "zorder": 4, "path_effects": outline}
    place = {"textcoords": "offset points", "xytext": (0, 6 if lower else -6), "va": "bottom" if lower else "top"}
    names = best["solver"].astype(str)
    for point in best[names != names.shift()].itertuples():  # away from students, on the side that is worse
        name = cut(shown(str(point.solver)), LONGEST)
        axes.annotate(name, (point.nfe, point.value), **place, **look)
