"""One number a solver, budget and metric: cells that differ in their seed alone become one estimate."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean

import pandas as pd

from bench.stats import LEVEL, Estimate, agreement, combine, difference, holm
from bench.store import Record


@dataclass(frozen=True)
class Score:
    """What a solver reaches at a budget (None for one that chooses its own calls), over all seeds of the sweep.

    `agreement` is the p of the seeds' spread (bench.stats.agreement); `at_infinity` the extrapolation of the estimate.
    """

    metric: str
    solver: str
    nfe: int | None
    better: str
    estimate: Estimate
    at_infinity: Estimate | None
    agreement: float
    keys: tuple[str, ...]


def series_of(record: Record) -> str:
    """What a record's line is called: its solver, and what of guidance and ways to run the sweep has several of."""
    cell = record["cell"]
    return str(cell.get("series", cell["solver"]))


def scores(records: Sequence[Record]) -> list[Score]:
    """The scores in a run's records, sorted by metric, solver and budget."""
    found = [(v["metric"], series_of(r), r["cell"]["nfe"], r, v) for r in records for v in r["metrics"]]
    found.sort(key=lambda item: (item[0], item[1], item[2] or 0, item[3]["cell"]["seed"]))
    return [_score(*place, list(items)) for place, items in groupby(found, key=lambda item: item[:3])]


def _score(metric: str, solver: str, nfe: int | None, items: Sequence[tuple]) -> Score:
    cells = [(record["cell"]["seed"], value) for *_, record, value in items]
    estimates = [Estimate.of(value, seed) for seed, value in cells]
    limits = [value.get("at_infinity") for _, value in cells]
    at_infinity = None
    if all(limits):
        at_infinity = combine(
            [Estimate(*limit, e.n, e.seeds, e.parts) for limit, e in zip(limits, estimates, strict=True)]
        )
    return Score(
        metric, solver, nfe, cells[0][1].get("better", "lower"), combine(estimates), at_infinity,
        agreement(estimates), tuple(record["key"] for *_, record, _ in items),
    )  # fmt: skip


def over_seeds(table: pd.DataFrame, records: Sequence[Record]) -> pd.DataFrame:
    """A tidy table with one row a score: its first seed's row with the score's numbers and, as `score`, itself.

    What depends on no sample, and times, which are the same computation's whatever the seed, are the first seed's.
    """
    rows = {(row["key"], row["metric"]): row for row in table.to_dict("records")}
    board = []
    for score in scores(records):
        cells = [rows[key, score.metric] for key in score.keys]
        limit = score.at_infinity
        board.append(
            cells[0]
            | {"solver": score.solver, "value": score.estimate.value, "se": score.estimate.se, "score": score}
            | {"value_inf": limit.value if limit else None, "se_inf": limit.se if limit else None}
            | {name: round(fmean(c[name] for c in cells), 1) for name in ("nfe", "counted_nfe", "forwards_per_sample")}
        )
    found = pd.DataFrame(board).astype({name: table[name].dtype for name in ("checkpoint", "solver")})
    return found.sort_values(["metric", "solver", "nfe"], ignore_index=True)


def among_best(rows: pd.DataFrame) -> pd.Series:
    """Which rows are not told apart from the best of their budget; none where neither direction is better."""
    if rows["better"].iloc[0] == "neither":
        return pd.Series(False, index=rows.index)
    pick = "idxmin" if rows["better"].iloc[0] == "lower" else "idxmax"
    best = rows.loc[rows.groupby("nfe")["value"].transform(pick), "score"]
    tied = [difference(a.estimate, b.estimate).tie for a, b in zip(rows["score"], best, strict=True)]
    return pd.Series(tied, index=rows.index)


def seeds_of(score: Score) -> str:
    """seed 0, or seeds 0, 1."""
    seeds = score.estimate.seeds
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def seeds_agree(board: pd.DataFrame) -> str:
    """One line on whether a metric's seeds lie as far apart as their errors say; empty for one seed."""
    found: list[Score] = list(board["score"])
    most = max(found, key=lambda score: len(score.estimate.seeds))  # a cell may have failed
    if len(most.estimate.seeds) < 2:
        return ""
    worst = min(holm([score.agreement for score in found]))
    verdict = "as their standard errors say" if worst >= LEVEL else "more than their standard errors say"
    return (
        f"Means over {seeds_of(most)}, which differ {verdict} "
        f"(chi-square of each cell, Holm over {len(found)}: least p {worst:.2g})."
    )
