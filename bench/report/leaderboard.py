"""The leaderboard: for each metric, solvers against budgets, every number with its standard error."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from bench.report.costs import costs
from bench.report.published import published
from bench.report.scores import among_best, seeds_agree, seeds_of
from bench.report.students import of_trained, students
from bench.report.text import MARK, brief, counted, grid, listed, markdown, of_students, with_error
from bench.report.titles import metrics_of, title

BETTER = {"lower": "lower is better", "higher": "higher is better", "neither": "neither direction is better"}


def leaderboard(table: pd.DataFrame, paired: pd.DataFrame, definition: Mapping[str, Any]) -> str:
    """Markdown, of a table over seeds (bench.report.scores) and of what tuned solvers gain over their bases."""
    first = table.iloc[0]
    parts = [
        f"# Leaderboard: {definition['checkpoint']}",
        f"Checkpoint {definition['checkpoint']} ({definition['digest'][:12]}), {definition['samples']:,} samples each, "
        f"{seeds_of(first['score'])}, guidance {_guidance(table)}; {_arithmetic(table)}; {first['device']}, "
        f"{counted(first['threads'], 'thread')}.  Columns are network calls (NFE), counted.",
        "Numbers are value ± standard error.  Bold: the best of its column and all that lie within two standard errors "
        "of the difference from it; since all cells share their noise, that is known by pairs, and better than the "
        "numbers themselves.  `fewstep rank` tests all pairs. "
        "A dash: no finished cell; the method cannot spend exactly that many calls, or `fewstep status` says why.",
    ]
    if (table["tuning_calls"] > 0).any():
        parts.append(
            "After a middle dot: what was spent to tune the solver for this budget, in network evaluations of one "
            "sample (a derivative along counts one more, a backward pass two); untuned solvers have none."
        )
    parts += _about_students(table)
    for metric in metrics_of(table):
        rows = table[table["metric"] == metric]
        about = rows.iloc[0]
        better = BETTER[about["better"]]
        against = "" if about["reference"] == "none" else f", against {about['reference']}"
        parts += [f"## {title(metric)}", f"`{metric}`, {better}; n = {about['n']:,}{against}."]
        parts += [line for line in (seeds_agree(rows),) if line] + _boards(rows) + _limits(rows)
    parts += _tuned(paired) if len(paired) else []
    parts += students(table)
    parts += costs(table, definition.get("quality"))
    parts += published(definition["checkpoint"])
    return "\n\n".join(parts) + "\n"


def _guidance(table: pd.DataFrame) -> str:
    """The scales of the sweep, and those that students bring with them."""
    own = of_students(table)
    theirs = f" (students at {listed(table[own]['guidance'])})" if own.any() else ""
    return (listed(table[~own]["guidance"]) or "none") + theirs


def _about_students(table: pd.DataFrame) -> list[str]:
    if not (own := of_students(table)).any():
        return []
    known = of_trained(table)
    where = "stands under Students" if known.any() else "is not known here"
    others = ", of those of them that tell it" if known.any() and (own & ~known).any() else ""
    return [
        f"Marked{MARK}, under the solvers: students, networks distilled to few calls.  Their numbers are not free as "
        f"solvers' are; what their training took {where}{others}."
    ]


def _arithmetic(table: pd.DataFrame) -> str:
    """How networks ran: their precision, layout and backend, as far as that is not usual."""
    ways = [listed(table[k].dropna()) for k in ("precision", "layout", "backend")]
    usual = ("", "contiguous", "eager")
    return "; ".join(way for way, plain in zip(ways, usual, strict=True) if way and way != plain) or str(
        table["dtype"].iloc[0]
    )


def _tuned(paired: pd.DataFrame) -> list[str]:
    """What tuned solvers gain over their bases."""
    text = paired["ratio"].map("{:.2f}".format) + " ± " + paired["se"].map("{:.1g}".format)
    return [
        "## Tuned over untuned",
        "Ratio of trajectory errors, tuned over its base at the same budget, from the same noise (paired standard "
        "error); below 1 tuning paid.",
        grid(paired.assign(solver=paired["solver"] + " / " + paired["base"]), text),
    ]


def _boards(rows: pd.DataFrame) -> list[str]:
    """Solvers against budgets; under it the adaptive ones, each with the calls a sample that it came to take."""
    fixed, adaptive = rows[~rows["adaptive"]], rows[rows["adaptive"]]
    parts = [grid(fixed, _with_error(fixed))] if len(fixed) else []
    if len(adaptive):
        calls = adaptive["nfe"].map("{:g}".format)
        text = _numbers(adaptive)
        lines = [["adaptive solver", "mean calls a sample", "value"], ["---"] * 3]
        parts.append(markdown([*lines, *map(list, zip(adaptive["solver"], calls, text, strict=True))]))
    return parts


def _limits(rows: pd.DataFrame) -> list[str]:
    """The numbers extrapolated to infinitely many samples, where they were."""
    known = rows[rows["value_inf"].notna() & ~rows["adaptive"]]
    if known.empty:
        return []
    text = _numbers(known, "value_inf", "se_inf")
    about = "Without the bias of so many samples, extrapolated to infinitely many (Richardson over halves of them):"
    return [about, grid(known, text)]


def _numbers(rows: pd.DataFrame, value: str = "value", se: str = "se") -> pd.Series:
    return pd.Series([with_error(*pair) for pair in zip(rows[value], rows[se], strict=True)], index=rows.index)


def _with_error(rows: pd.DataFrame) -> pd.Series:
    """value ± se, bold where the best of the budget is not told apart from it."""
    text = _numbers(rows)
    spent = rows["tuning_calls"].map(lambda calls: f" · {brief(calls)}" if calls else "")
    return text.where(~among_best(rows), "**" + text + "**") + spent
