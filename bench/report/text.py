"""Numbers and tables as Markdown."""

import pandas as pd


def brief(calls: float) -> str:
    """4,450 as 4.45k."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if calls >= size:
            return f"{calls / size:.3g}{letter}"
    return f"{calls:g}"


def significant(value: float) -> str:
    """Three significant digits, plain notation."""
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def rounded(error: float) -> str:
    """One significant digit, plain notation."""
    return f"{float(f'{error:.1g}'):g}"


def with_error(value: float, error: float) -> str:
    return f"{significant(value)} ± {rounded(error)}"


def listed(values: pd.Series) -> str:
    """The different values in order: 1, 7.5."""
    return ", ".join(
        f"{value:g}" if isinstance(value, int | float) else str(value) for value in sorted(values.unique())
    )


def counted(n: int, what: str) -> str:
    """1 thread, 2 threads."""
    return f"{n:g} {what}{'' if n == 1 else 's'}"


def grid(rows: pd.DataFrame, text: pd.Series) -> str:
    """A table of `text`, solvers down, budgets across."""
    wide = rows.assign(text=text).pivot(index="solver", columns="nfe", values="text").fillna("—")
    head = ["solver", *(f"{nfe:g}" for nfe in wide.columns)]
    lines = [
        head,
        ["---"] * len(head),
        *([name, *values] for name, values in zip(wide.index, wide.values, strict=True)),
    ]
    return markdown(lines)


def markdown(lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
