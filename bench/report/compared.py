"""A comparison as people read it: a table to print, Markdown, CSV."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bench.compare import IDENTICAL, SAME, VERDICTS, Compared, Comparison, Place
from bench.compare_speed import Speed
from bench.files import write_text
from bench.report.compared_plot import write_compared_plots
from bench.report.text import counted, markdown, rounded, shown, significant, with_error
from bench.stats import LEVEL

HEAD = ("solver", "calls", "metric", "A", "B", "B - A", "in s.e.", "p", "verdict", "computation")
SPEEDS = ("solver", "at", "budgets", "time B/A", "over the network B/A", "p", "memory A", "memory B")


def write_comparison(found: Comparison, folder: Path) -> list[Path]:
    """Write comparison.md, comparison.csv and the figures into a folder; returns the files."""
    write_text(folder / "comparison.md", text_of(found))
    write_text(folder / "comparison.csv", pd.DataFrame([_row(score) for score in found.scores]).to_csv(index=False))
    return [folder / "comparison.md", folder / "comparison.csv", *write_compared_plots(found, folder)]


def summary(found: Comparison) -> str:
    """One line: how many scores there are of each verdict, and how many do not compare."""
    of = Counter(score.verdict for score in found.scores)
    parts = [f"{of[verdict]} {verdict}" for verdict in VERDICTS if of[verdict]]
    if changed := sum(bool(score.changes) for score in found.of(IDENTICAL)):
        parts[-1] += f" ({changed} of another computation)"
    lacks = ((found.only_a, "only in A"), (found.only_b, "only in B"), (found.apart, "not comparable"))
    parts += [f"{len(places)} {what}" for places, what in lacks if places]
    return f"{counted(len(found.scores), 'score')} of both: {', '.join(parts) or 'none'}"


def about(found: Comparison) -> list[str]:
    """What the two are and how they were compared, in sentences."""
    paired = [score.difference.paired for score in found.scores]
    how = "paired by their noise" if all(paired) else "taken as independent, since they share no noise"
    if any(paired) and not all(paired):
        how = f"paired by their noise where they share it, {sum(paired)} of {len(paired)}"
    tested = sum(not score.is_rounding for score in found.scores)
    return [
        f"A is {found.a}, B is {found.b}.  Differences are B - A ± standard error, {how}; p is adjusted over the "
        f"{counted(tested, 'score')} whose numbers differ (Holm), and told apart is what lies below {LEVEL:.0%}.",
    ]


def lines_of(scores: Sequence[Compared], several: bool) -> list[list[str]]:
    """Rows under HEAD; with several runs a solver's name stands behind its run's."""
    return [
        [
            (f"{score.place.run}: " if several else "") + shown(score.place.series), _budget(score.place),
            score.place.metric, with_error(score.a.value, score.a.se), with_error(score.b.value, score.b.se),
            f"{score.difference.value:+.3g} ± {rounded(score.difference.se)}", f"{score.errors:+.1f}",
            f"{score.p:.2g}", score.verdict, ", ".join(score.changes),
        ]
        for score in scores
    ]  # fmt: skip


def speed_lines(speeds: Sequence[Speed], several: bool) -> list[list[str]]:
    """Rows under SPEEDS."""
    return [
        [
            (f"{speed.run}: " if several else "") + shown(speed.series), speed.at, f"{speed.budgets}",
            f"{speed.ratio:.2f}", f"{speed.relative:.2f}", f"{speed.p:.2g}", *map(significant, speed.memory),
        ]
        for speed in speeds
    ]  # fmt: skip


def about_speeds(found: Comparison) -> str:
    middle = pd.Series([speed.relative for speed in found.speeds]).median()
    return (
        "Times of different sessions: the machine may have been busy in one.  What compares is a trajectory over the "
        "bare network calls of its own round (geometric means over budgets; p: van Elteren's rank test over rounds, a "
        "stratum a budget, Holm), and even that a session may shift as a whole: the median over all rows is "
        f"{middle:.2f}.  Memory: largest peak above the weights', MiB, at the best batch."
    )


def missing_lines(found: Comparison) -> list[str]:
    """What one side lacks and what does not compare, a line a solver and reason."""
    lines = [f"only in A: the run {run}" for run in found.runs_only_a]
    lines += [f"only in B: the run {run}" for run in found.runs_only_b]
    for side, places in (("A", found.only_a), ("B", found.only_b)):
        lines += [f"only in {side}: {line}" for line in _gathered([(place, "") for place in places])]
    return lines + [f"not comparable: {line}" for line in _gathered(found.apart)]


def _gathered(places: Sequence[tuple[Place, str]]) -> list[str]:
    """One line for places of one solver and reason, which names their metrics and budgets."""
    groups: dict[tuple[str, str, str], list[Place]] = {}
    for place, why in places:
        groups.setdefault((place.run, place.series, why), []).append(place)
    lines = []
    for (run, series, why), of in groups.items():
        metrics = ", ".join(sorted({place.metric for place in of}))
        budgets = " ".join(dict.fromkeys(map(_budget, sorted(of, key=lambda place: place.nfe or 0))))
        lines.append(f"{run}: {shown(series)} at {budgets} calls by {metrics}" + (f" ({why})" if why else ""))
    return sorted(lines)


def text_of(found: Comparison) -> str:
    """The whole comparison as Markdown."""
    several = len({score.place.run for score in found.scores}) > 1
    parts = ["# Comparison", *about(found), f"**{summary(found)}.**"]
    parts.append(
        "Computation: what of the weights, options, times and counted calls (NFE) is another; plan: the cell's key "
        "alone, so its coefficients or what keys are made of."
    )
    for title, scores in (("Told apart", found.told_apart), (SAME.capitalize(), found.of(SAME))):
        if scores:
            parts += [f"## {title}", _table(HEAD, lines_of(scores, several))]
    if changed := [score for score in found.of(IDENTICAL) if score.changes]:
        parts += ["## Identical numbers of another computation", _table(HEAD, lines_of(changed, several))]
    if alike := Counter(score.place.series for score in found.of(IDENTICAL)):
        names = ", ".join(f"{shown(name)} ({n})" for name, n in alike.items())
        parts += ["## Identical to the last digit", markdown([["solver (scores)"], ["---"], [names]])]
    if found.speeds:
        parts += ["## Speed and memory", about_speeds(found), _table(SPEEDS, speed_lines(found.speeds, several))]
    if lines := missing_lines(found):
        parts += ["## Missing or not comparable", _table(("what",), [[line] for line in lines])]
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return markdown([list(head), ["---"] * len(head), *map(list, lines)])


def _budget(place: Place) -> str:
    return "adaptive" if place.nfe is None else f"{place.nfe}"


def _row(score: Compared) -> dict[str, object]:
    """A score as a row of comparison.csv."""
    a, b, d = score.a, score.b, score.difference
    return vars(score.place) | {
        "better": score.better, "a": a.value, "a_se": a.se, "b": b.value, "b_se": b.se, "n": a.n,
        "a_seeds": " ".join(map(str, a.seeds)), "b_seeds": " ".join(map(str, b.seeds)),
        "difference": d.value, "se": d.se, "paired": d.paired, "in_standard_errors": score.errors,
        "p": score.p, "verdict": score.verdict, "computation": "; ".join(score.changes),
    }  # fmt: skip
