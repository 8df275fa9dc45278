"""The leaderboard: for each metric, solvers against budgets, every number with its standard error."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

TITLES = {
    "frechet_digits": "Fréchet distance, features of the digits classifier",
    "frechet_pixels": "Fréchet distance, pixels",
    "frechet_exact": "Fréchet distance to the exact moments",
    "trajectory_rmse": "Trajectory error, RMSE",
    "trajectory_p95": "Trajectory error, 95th percentile",
}


def metrics_of(table: pd.DataFrame) -> list[str]:
    """The metrics of a table, best known first."""
    there = table["metric"].unique()
    return [m for m in TITLES if m in there] + sorted(m for m in there if m not in TITLES)


def batches_of(table: pd.DataFrame) -> list[int]:
    """The batch sizes whose latency a table holds, smallest first."""
    found = (re.fullmatch(r"latency_batch(\d+)_ms", column) for column in table)
    return sorted(int(match[1]) for match in found if match)


def title(metric: str) -> str:
    return TITLES.get(metric, metric)


def leaderboard(table: pd.DataFrame, paired: pd.DataFrame, definition: Mapping[str, Any]) -> str:
    """Markdown, of a tidy table and of what tuned solvers gain over their bases."""
    first = table.iloc[0]
    parts = [
        f"# Leaderboard: {definition['checkpoint']}",
        f"Checkpoint {definition['checkpoint']} ({definition['digest'][:12]}), {definition['samples']:,} samples each, "
        f"seed {definition['seed']}, guidance {definition['guidance']:g}, {definition['dtype']}; {first['device']}, "
        f"{first['threads']} threads.  Columns are network calls (NFE), counted.  Lower is better everywhere.",
        "Numbers are value ± standard error.  Bold: the best of its column and all that lie within two standard errors "
        "of the difference from it, the two taken as independent; since all cells share their noise, that is cautious. "
        "A dash: no finished cell; the method cannot spend exactly that many calls, or `fewstep status` says why.",
    ]
    if (table["tuning_calls"] > 0).any():
        parts.append(
            "After a middle dot: what was spent to tune the solver for this budget, in network evaluations of one "
            "sample (a derivative along counts one more, a backward pass two); untuned solvers have none."
        )
    for metric in metrics_of(table):
        rows = table[table["metric"] == metric]
        about = rows.iloc[0]
        parts += [f"## {title(metric)}", f"`{metric}`, n = {about['n']:,}, against {about['reference']}."]
        parts += _boards(rows)
    parts += _tuned(paired) if len(paired) else []
    parts += _costs(table[~table["adaptive"]].drop_duplicates("key"))
    return "\n\n".join(parts) + "\n"


def _tuned(paired: pd.DataFrame) -> list[str]:
    """What tuned solvers gain over their bases."""
    text = paired["ratio"].map("{:.2f}".format) + " ± " + paired["se"].map("{:.1g}".format)
    return [
        "## Tuned over untuned",
        "Ratio of trajectory errors, tuned over its base at the same budget, from the same noise (paired standard "
        "error); below 1 tuning paid.",
        _grid(paired.assign(solver=paired["solver"] + " / " + paired["base"]), text),
    ]


def _costs(cells: pd.DataFrame) -> list[str]:
    """Latency at each batch size that was measured, and memory."""
    batches, parts = batches_of(cells) if len(cells) else [], []
    for batch in batches:
        spread = (cells[f"latency_batch{batch}_iqr_ms"] / 2).map("{:.1g}".format)
        parts += [
            f"## Latency, batch {batch}",
            "Median milliseconds of a whole trajectory ± half the interquartile range.",
            _grid(cells, cells[f"latency_batch{batch}_ms"].map(significant) + " ± " + spread),
        ]
    if batches:
        parts += [
            "## Peak memory",
            f"MiB above the weights' at batch {batches[-1]} (resident set, or a GPU's allocations).",
            _grid(cells, cells["memory_above_weights_mib"].map(significant)),
        ]
    return parts


def _boards(rows: pd.DataFrame) -> list[str]:
    """Solvers against budgets; under it the adaptive ones, each with the calls a sample that it came to take."""
    fixed, adaptive = rows[~rows["adaptive"]], rows[rows["adaptive"]]
    parts = [_grid(fixed, _with_error(fixed))] if len(fixed) else []
    if len(adaptive):
        calls = adaptive["nfe"].map("{:g}".format)
        text = adaptive["value"].map(significant) + " ± " + adaptive["se"].map("{:.1g}".format)
        lines = [["adaptive solver", "mean calls a sample", "value"], ["---"] * 3]
        parts.append(_markdown([*lines, *map(list, zip(adaptive["solver"], calls, text, strict=True))]))
    return parts


def _with_error(rows: pd.DataFrame) -> pd.Series:
    """value ± se, bold where the best of the budget is not told apart from it."""
    best = rows.loc[rows.groupby("nfe")["value"].transform("idxmin")]
    tied = (rows["value"].to_numpy() - best["value"].to_numpy()) <= 2 * np.hypot(rows["se"], best["se"].to_numpy())
    text = rows["value"].map(significant) + " ± " + rows["se"].map("{:.1g}".format)
    spent = rows["tuning_calls"].map(lambda calls: f" · {brief(calls)}" if calls else "")
    return text.where(~tied, "**" + text + "**") + spent


def brief(calls: float) -> str:
    """4,450 as 4.5k."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if calls >= size:
            return f"{calls / size:.3g}{letter}"
    return f"{calls:g}"


def significant(value: float) -> str:
    """Three significant digits, plain notation."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _grid(rows: pd.DataFrame, text: pd.Series) -> str:
    """A Markdown table of `text`, solvers down, budgets across."""
    wide = rows.assign(text=text).pivot(index="solver", columns="nfe", values="text").fillna("—")
    head = ["solver", *(f"{nfe:g}" for nfe in wide.columns)]
    lines = [
        head,
        ["---"] * len(head),
        *([name, *values] for name, values in zip(wide.index, wide.values, strict=True)),
    ]
    return _markdown(lines)


def _markdown(lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
