"""Numbers, names and tables as Markdown."""

import re
from collections.abc import Iterable

import pandas as pd

MARK = " †"  # behind a student's name


def brief(calls: float) -> str:
    """4,450 as 4.45k."""
    shown = float(f"{calls:.3g}")
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if shown >= size:
            return f"{calls / size:.3g}{letter}"
    return f"{calls:g}"


def duration(seconds: float) -> str:
    """In the unit that suits it: 45 s, 8.54 min, 2.3 h."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


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


def of_students(rows: pd.DataFrame) -> pd.Series:
    """Which rows are of students; older records do not say, and know of none."""
    return rows["student"].eq(True) if "student" in rows else pd.Series(False, index=rows.index)


def shown(solver: str) -> str:
    """The solver as there is room for it: a plug-in without its folder, a path in quotes with its last two parts."""
    return re.sub(r"""^[^(]*/(?=[^(/])|(?<=['"])[^'"]*/(?=[^'"/]+/[^'"/]+/?['"])""", "", solver)


def cut(text: str, longest: int) -> str:
    """The text, its end left out where it is longer."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Solvers without the folders before them, unless two would then be called alike."""
    short = {name: shown(name) for name in names}
    taken = list(short.values())
    return {name: text if taken.count(text) == 1 else name for name, text in short.items()}


def student_names(rows: pd.DataFrame) -> dict[str, str]:
    """What students are called in tables: short, and marked."""
    short = short_names(rows["solver"].unique())
    return {name: short[name] + MARK for name in rows[of_students(rows)]["solver"].unique()}


def grid(rows: pd.DataFrame, text: pd.Series) -> str:
    """A table of `text`, solvers down and students, marked, under them; budgets across."""
    wide = rows.assign(text=text).pivot(index="solver", columns="nfe", values="text").fillna("—")
    head, names = ["solver", *(f"{nfe:g}" for nfe in wide.columns)], student_names(rows)
    lines = [[names.get(name, name), *values] for name, values in zip(wide.index, wide.values, strict=True)]
    lines.sort(key=lambda line: line[0].endswith(MARK))
    return markdown([head, ["---"] * len(head), *lines])


def markdown(lines: list[list[str]]) -> str:
    """A table; what names hold of its own marks, and of HTML's, is escaped."""
    return "\n".join("| " + " | ".join(map(_escaped, line)) + " |" for line in lines)


def _escaped(cell: str) -> str:
    return " ".join(cell.split()).replace("|", "\\|").replace("<", "&lt;")
