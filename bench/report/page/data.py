"""The numbers of a run as the page's script takes them: columns of cells, and of each metric's scores."""

from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any

import numpy as np
import pandas as pd

from bench.errors import UsageError
from bench.rank import rank
from bench.report.costs import COUNTS, front
from bench.report.leaderboard import BETTER
from bench.report.run import Run
from bench.report.scores import Score, among_best, seeds_agree, seeds_of
from bench.report.students import break_evens_of
from bench.report.text import of_students, short_names
from bench.report.titles import axis_label, metrics_of, title

CELLS = {  # columns of the board, and what they are called in the page
    "nfe": "nfe", "adaptive": "adaptive", "forwards_per_sample": "forwards", "tuning_calls": "tuning",
    "training_calls": "training", "latency_batch1_ms": "latency", "latency_batch1_iqr_ms": "latencyIqr",
    "throughput_per_s": "throughput", "memory_above_weights_mib": "memory", "speed": "speed",
}  # fmt: skip
COSTS = ("latency", "time", "memory")  # what quality is set against
DIGITS = 6  # significant
TIED, BEST = 1, 2


def data_of(run: Run) -> dict[str, Any]:
    """Solvers, cells in columns, metrics with their scores, and the window in which speeds count."""
    cells = _cells(run.board)
    names = short_names(dict.fromkeys(cells["solver"]))
    place = {name: i for i, name in enumerate(names)}
    board = run.board.merge(cells[["solver", "nfe", "cell", *COSTS]], on=["solver", "nfe"])
    return {
        "solvers": [{"name": name, "shown": text, "kind": _kind(cells, name)} for name, text in names.items()],
        "cells": {"solver": [place[name] for name in cells["solver"]]}
        | {name: column(cells[name]) for name in (*CELLS.values(), "time")},
        "metrics": [_metric(run, board[board["metric"] == metric]) for metric in metrics_of(board)],
        "window": run.definition.get("quality"),
        "amortised": _amortised(run.board, place),
        "measured": bool(cells["latency"].notna().any()),
    }


def _cells(board: pd.DataFrame) -> pd.DataFrame:
    """One row a solver and budget; costs that were not measured are missing values."""
    cells = board.drop_duplicates(["solver", "nfe"]).sort_values(["solver", "nfe"], ignore_index=True)
    cells = cells.reindex(columns=list(dict.fromkeys([*cells, *CELLS]))).rename(columns=CELLS)
    return cells.assign(cell=range(len(cells)), time=1e3 / cells["throughput"].astype(float))


def _kind(cells: pd.DataFrame, name: str) -> str:
    rows = cells[cells["solver"] == name]
    if of_students(rows).any():
        return "student"
    return "tuned solver" if (rows["tuning"] > 0).any() else "solver"


def _amortised(board: pd.DataFrame, place: Mapping[str, int]) -> list[dict[str, Any]]:
    """Each student's cell that a solver is as good as: forwards an image and calls spent beforehand, of both."""
    _, evens = break_evens_of(board)
    return [
        {
            "solver": place[even.student["solver"]], "nfe": even.student["nfe"],
            "offline": even.student["training_calls"], "forwards": even.student["forwards_per_sample"],
            "rivalOffline": int(even.rival["tuning_calls"]), "rivalForwards": even.rival["forwards_per_sample"],
        }
        for even in evens if even.rival is not None and not isnan(even.calls)
    ]  # fmt: skip


def _metric(run: Run, rows: pd.DataFrame) -> dict[str, Any]:
    """One metric's scores in columns, best first at each budget, and what it is."""
    first, metric = rows.iloc[0], rows["metric"].iloc[0]
    lower = first["better"] == "lower"
    rows = rows.assign(best=_marks(rows)).sort_values(["nfe", "value"], ascending=[True, lower])
    letters = _letters(run, metric)
    score: Score = first["score"]
    return {
        "name": metric,
        "title": title(metric),
        "axis": axis_label(metric),
        "better": first["better"],
        "log": bool(lower and (rows["value"] > 0).all()),
        "about": _about(rows, score),
        "cell": column(rows["cell"]),
        "value": column(rows["value"]),
        "se": column(rows["se"]),
        "best": column(rows["best"]),
        "letters": [letters.get((s.solver, s.nfe), "") for s in rows["score"]],
        "fronts": _fronts(rows, run.definition.get("quality") is not None),
    }


def _about(rows: pd.DataFrame, score: Score) -> str:
    first = rows.iloc[0]
    against = "" if first["reference"] == "none" else f", against {first['reference']}"
    about = f"{BETTER[first['better']]}; n = {first['n']:,}{against}; {seeds_of(score)}."
    return " ".join(filter(None, (about, seeds_agree(rows))))


def _marks(rows: pd.DataFrame) -> pd.Series:
    """BEST, TIED with the best of the budget, or 0."""
    tied = among_best(rows)
    if not tied.any():
        return tied.astype(int)
    values = rows.groupby("nfe")["value"]
    best = values.transform("min" if rows["better"].iloc[0] == "lower" else "max")
    return pd.Series(np.where(tied, np.where(rows["value"] == best, BEST, TIED), 0), rows.index)


def _letters(run: Run, metric: str) -> dict[tuple[str, int | None], str]:
    """The groups of ties by solver and budget; none where the metric cannot rank."""
    try:
        ranking = rank(run.store, metric)
    except UsageError:
        return {}
    return {(name, budget.nfe): letters for budget in ranking.budgets for name, letters in budget.letters.items()}


def _fronts(rows: pd.DataFrame, judged: bool) -> dict[str, list[int]]:
    """Cells that nothing beats in quality and one cost, cheapest first, and under `all` in quality and every cost.

    With a window of quality only speeds that count are looked at.
    """
    known = rows[(rows["speed"] == COUNTS) | (not judged)]
    sign = {"lower": 1, "higher": -1, "neither": 0}[rows["better"].iloc[0]]
    known = known.assign(loss=sign * known["value"])
    fronts = {}
    for cost in COSTS:
        there = known[known[cost].notna()].sort_values([cost, "loss"])
        fronts[cost] = front(there)["cell"].tolist()
    there = known.dropna(subset=["loss", "latency", "memory"]).sort_values("latency")
    unbeaten = _unbeaten(there[["loss", "latency", "memory"]].to_numpy(float)) if sign else np.zeros(len(there), bool)
    return fronts | {"all": there[unbeaten]["cell"].tolist()}


def _unbeaten(costs: np.ndarray) -> np.ndarray:
    """Of (N, K) costs, which rows no other row is as good as in all and better than in one, (N,)."""
    as_good = (costs[:, None] <= costs[None]).all(-1)  # row i is as good as row j
    better = (costs[:, None] < costs[None]).any(-1)
    return ~(as_good & better).any(0)


def column(values: pd.Series | Sequence[Any]) -> list[Any]:
    """Values for JSON: floats at a few digits, missing and infinite ones as null."""
    return [_plain(value) for value in pd.Series(values).tolist()]


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        if not np.isfinite(value):
            return None
        short = float(f"{value:.{DIGITS}g}")
        return int(short) if short.is_integer() and abs(short) < 1e15 else short
    return None if value is None else value
