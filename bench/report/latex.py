"""The leaderboard as LaTeX tables, one a metric, for papers."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from bench.report.scores import among_best, seeds_of
from bench.report.text import brief, of_students, rounded, short_names, significant
from bench.report.titles import metrics_of, title

DAGGER = r"\textsuperscript{\textdagger}"
SPECIAL = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}"}
    | {"'": r"\textquotesingle{}", "`": r"\textasciigrave{}", "-": "{-}"}  # of which two would be a dash
)


def escaped(text: str) -> str:
    """Text as LaTeX typesets it, letter by letter."""
    return " ".join(text.split()).translate(SPECIAL)


def latex(board: pd.DataFrame, definition: Mapping[str, Any]) -> str:
    """Tables of a table over seeds (bench.report.scores): value ± s.e., bold what is tied with the best of a budget."""
    parts = [
        r"% \usepackage{booktabs,adjustbox,textcomp}, and \usepackage[T1]{fontenc} for pdfLaTeX",
        *(_table(board[board["metric"] == metric], definition) for metric in metrics_of(board)),
    ]
    return "\n\n".join(parts) + "\n"


def _table(rows: pd.DataFrame, definition: Mapping[str, Any]) -> str:
    fixed, adaptive = rows[~rows["adaptive"]], rows[rows["adaptive"]]
    budgets = sorted(fixed["nfe"].unique())
    width = len(budgets) + 1
    head = " & ".join(["Solver", *(f"{nfe:g}" for nfe in budgets)]) + r" \\"
    own = of_students(fixed)
    groups = [_lines(fixed[~own], budgets, ""), _lines(fixed[own], budgets, DAGGER), _adaptive(adaptive, width)]
    body = "\n\\midrule\n".join("\n".join(lines) for lines in groups if lines)
    return "\n".join(
        [
            r"\begin{table}", r"\centering", rf"\caption{{{_caption(rows, definition)}}}",
            r"\begin{adjustbox}{max width=\linewidth, max totalheight=0.85\textheight}",
            rf"\begin{{tabular}}{{l{'r' * len(budgets)}}}", r"\toprule", head, r"\midrule", body, r"\bottomrule",
            r"\end{tabular}", r"\end{adjustbox}", r"\end{table}",
        ]
    )  # fmt: skip


def _caption(rows: pd.DataFrame, definition: Mapping[str, Any]) -> str:
    first = rows.iloc[0]
    better = {"lower": " (lower is better)", "higher": " (higher is better)"}.get(first["better"], "")
    parts = [
        f"{escaped(title(first['metric']))}{better} on {escaped(definition['checkpoint'])} by network calls (NFE), "
        rf"n = {first['n']:,}, {seeds_of(first['score'])}, value $\pm$ standard error."
    ]
    if better:
        parts.append("Bold: the best of a budget and what lies within two standard errors of the paired difference.")
    if of_students(rows).any():
        parts.append(rf"{DAGGER}: distilled networks.")
    if (rows["tuning_calls"] > 0).any():
        parts.append(r"After $\cdot$: network evaluations spent on tuning.")
    return " ".join(parts)


def _lines(rows: pd.DataFrame, budgets: Sequence[float], mark: str) -> list[str]:
    """A row a solver, a dash where it has no number."""
    if rows.empty:
        return []
    wide = rows.assign(text=_numbers(rows)).pivot(index="solver", columns="nfe", values="text")
    wide = wide.reindex(columns=budgets).astype(object).fillna("---").sort_index()
    names = short_names(wide.index)
    rows_of = zip(wide.index, wide.values, strict=True)
    return [" & ".join([escaped(names[name]) + mark, *texts]) + r" \\" for name, texts in rows_of]


def _numbers(rows: pd.DataFrame) -> pd.Series:
    best = among_best(rows)
    return pd.Series([_number(row, best[i]) for i, row in rows.iterrows()], index=rows.index)


def _number(row: pd.Series, bold: bool) -> str:
    text = rf"{_plain(significant(row['value']))} \pm {_plain(rounded(row['se']))}"
    spent = rf" $\cdot$ {brief(row['tuning_calls'])}" if row["tuning_calls"] else ""
    return (rf"$\mathbf{{{text}}}$" if bold else f"${text}$") + spent


def _plain(number: str) -> str:
    """8e-05 as a product."""
    return re.sub(r"e(-?)\+?0*(\d+)", r" \\times 10^{\1\2}", number)


def _adaptive(rows: pd.DataFrame, width: int) -> list[str]:
    """Solvers that choose their own calls, whose mean stands beside the name."""
    names = short_names(rows["solver"].unique())
    return [
        rf"\multicolumn{{{width}}}{{l}}{{{escaped(names[row['solver']])}, {row['nfe']:g} calls a sample on average: "
        rf"{_number(row, False)}}} \\"
        for _, row in rows.iterrows()
    ]
