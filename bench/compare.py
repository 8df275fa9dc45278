"""Two sides' runs, score by score: by how many standard errors they differ, what else changed, what is missing.

Scores are matched by what they are (checkpoint, solver, budget, guidance, precision, metric) and not by key, which
changes with the computation.  Seeds that both have are pooled, and paired by their noise; where there are none, all
seeds of each, taken as independent.  p is adjusted for all scores whose numbers differ (Holm 1979): the same numbers to
the last digit need no test, and what differs by another machine's rounding is within the noise.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from bench.compare_speed import Speed, Timed, speeds
from bench.errors import UsageError
from bench.mode import Mode
from bench.report.scores import series_of
from bench.revisions import Runs
from bench.stats import LEVEL, Difference, Estimate, combine, difference, holm
from bench.store import Record, Store
from solvers import did_you_mean

WORSE, CHANGED, BETTER, SAME, IDENTICAL = "worse", "changed", "better", "same within the noise", "identical"
VERDICTS = (WORSE, CHANGED, BETTER, SAME, IDENTICAL)  # in the order in which they are told
ABOUT = ("checkpoint", "guidance", "guidance_interval", "cfg_plus_plus", "classes", "prompts")
ROUNDING = 1e-6  # of a number: states are float32
OF_NOISE = "trajectory"  # the family whose reference is made of the sampled noise, bit for bit another elsewhere

What = tuple[str, int | None, str]  # a cell but for its seed: solver, budget, and the rest
Cells = dict[What, dict[int, Record]]  # by seed
Seeds = dict[int, tuple[Record, Mapping[str, Any]]]  # by seed: a cell's record, and its number by one metric


@dataclass(frozen=True)
class Place:
    """Where a score stands; `nfe` is None for a solver that chooses its own calls."""

    run: str
    metric: str
    series: str
    nfe: int | None


@dataclass(frozen=True)
class Compared:
    """A score of both sides: the difference is b - a, `p` adjusted, `changes` what of the computation is another."""

    place: Place
    better: str
    a: Estimate
    b: Estimate
    difference: Difference
    changes: tuple[str, ...]
    verdict: str = IDENTICAL
    p: float = 1.0

    @property
    def is_rounding(self) -> bool:
        return abs(self.difference.value) <= ROUNDING * abs(self.a.value)

    @property
    def errors(self) -> float:
        """The difference in its standard errors, infinite where it has none; 0 for rounding."""
        d = self.difference
        return 0.0 if self.is_rounding else math.copysign(math.inf, d.value) if d.se == 0 else d.value / d.se

    @property
    def worsening(self) -> float:
        """The same, positive where b is worse; of a metric without a direction, its size."""
        return {"lower": self.errors, "higher": -self.errors}.get(self.better, abs(self.errors))


@dataclass(frozen=True)
class Comparison:
    """Scores, worst first; those that both sides have and that do not compare, with the reason; what one side lacks."""

    a: str
    b: str
    scores: tuple[Compared, ...]
    apart: tuple[tuple[Place, str], ...]
    only_a: tuple[Place, ...]
    only_b: tuple[Place, ...]
    runs_only_a: tuple[str, ...]
    runs_only_b: tuple[str, ...]
    speeds: tuple[Speed, ...]

    def of(self, verdict: str) -> list[Compared]:
        return [score for score in self.scores if score.verdict == verdict]

    @property
    def told_apart(self) -> list[Compared]:
        return [score for score in self.scores if score.verdict not in (IDENTICAL, SAME)]


def compare(names: tuple[str, str], a: Runs, b: Runs, metric: str | None = None, nfe: Sequence[int] = ()) -> Comparison:
    """All scores of both sides' runs, or those of a metric and of budgets.  Raises UsageError and UnknownNameError."""
    pairs = _pairs(names, a, b)
    sides = {run: (_cells(of_a), _cells(of_b)) for run, (of_a, of_b) in pairs.items()}
    found = [match for run, cells in sides.items() for match in _matches(run, *cells)]
    found = _chosen(found, metric, nfe)
    both = [(place, *_shared(of_a, of_b)) for place, of_a, of_b in found if of_a and of_b]
    apart = [(place, why) for place, of_a, of_b in both if (why := _apart(of_a, of_b))]
    alike = [_compared(place, of_a, of_b) for place, of_a, of_b in both if not _apart(of_a, of_b)]
    timed = [pair for run, (of_a, of_b) in pairs.items() for pair in _timed(run, of_a, of_b, sides[run], nfe)]
    alone = len(a) == len(b) == 1  # whatever the two are called
    return Comparison(
        *names, tuple(_judged(alike)), tuple(apart),
        tuple(place for place, _, of_b in found if not of_b),
        tuple(place for place, of_a, _ in found if not of_a),
        () if alone else tuple(sorted(a.keys() - b.keys())), () if alone else tuple(sorted(b.keys() - a.keys())),
        tuple(speeds(timed)),
    )  # fmt: skip


def _pairs(names: tuple[str, str], a: Runs, b: Runs) -> dict[str, tuple[Store, Store]]:
    """The runs of both sides; raises UsageError when there are none."""
    if len(a) == len(b) == 1:
        return {name: (other, store) for other in a.values() for name, store in b.items()}
    shared = {name: (a[name], b[name]) for name in a if name in b}
    if not shared:
        sides = (f"{name} holds {', '.join(runs)}" for name, runs in zip(names, (a, b), strict=True))
        raise UsageError(f"{'; '.join(sides)}: no run is called alike in both")
    return shared


def _cells(store: Store) -> Cells:
    """A run's finished cells; raises UsageError when there are none."""
    store.definition()
    found: Cells = {}
    for record in store.records():
        cell: Record = asdict(Mode()) | record["cell"]  # older records do not tell the mode
        about = json.dumps([cell.get(name) for name in (*ABOUT, *asdict(Mode()), "dtype")])
        what = (cell["solver"].replace(" ", ""), cell["nfe"], about)
        found.setdefault(what, {})[cell["seed"]] = record
    if not found:
        raise UsageError(f"{store.folder} holds no finished cell: run its sweep first")
    return found


def _matches(run: str, a: Cells, b: Cells) -> Iterator[tuple[Place, Seeds, Seeds]]:
    """Every score that either side has, and its numbers by seed on both; none where a side lacks it."""
    for what in a | b:
        sides = [cells.get(what, {}) for cells in (a, b)]
        records = [record for seeds in sides for record in seeds.values()]
        series = max(map(series_of, records), key=len)  # a sweep says only what it has several of
        for metric in dict.fromkeys(value["metric"] for record in records for value in record["metrics"]):
            of_a, of_b = ({seed: (r, v) for seed, r in seeds.items() if (v := _value(r, metric))} for seeds in sides)
            yield Place(run, metric, series, what[1]), of_a, of_b


def _value(record: Record, metric: str) -> Mapping[str, Any] | None:
    return next((value for value in record["metrics"] if value["metric"] == metric), None)


def _chosen(
    found: list[tuple[Place, Seeds, Seeds]], metric: str | None, nfe: Sequence[int]
) -> list[tuple[Place, Seeds, Seeds]]:
    """Those of a metric and of budgets, if any are named; raises when there are none such."""
    metrics = sorted({place.metric for place, *_ in found})
    if metric and metric not in metrics:
        raise did_you_mean("metric", metric, metrics)
    budgets = sorted({place.nfe for place, *_ in found if place.nfe is not None})
    if missing := [budget for budget in nfe if budget not in budgets]:
        raise UsageError(f"--nfe {missing[0]}: the budgets there are {', '.join(map(str, budgets))}")
    return [match for match in found if metric in (None, match[0].metric) and (not nfe or match[0].nfe in nfe)]


def _shared(a: Seeds, b: Seeds) -> tuple[Seeds, Seeds]:
    """Both sides at the seeds that they share, or at all where they share none."""
    common = sorted(a.keys() & b.keys())
    return ({seed: a[seed] for seed in common}, {seed: b[seed] for seed in common}) if common else (a, b)


def _against(value: Mapping[str, Any]) -> dict[str, Any]:
    """What numbers compare within."""
    reference = value["reference"]
    digest = None if value["family"] == OF_NOISE else reference.get("sha256")
    return {"samples": value["n"], "family": value["family"], "reference": (reference["data"], digest)}


def _apart(a: Seeds, b: Seeds) -> str:
    """Why two numbers do not compare; empty where they do."""
    (_, first), (_, second) = next(iter(a.values())), next(iter(b.values()))
    of_a, of_b = _against(first), _against(second)
    return "; ".join(f"{k}: {_said(of_a[k])} / {_said(of_b[k])}" for k in of_a if of_a[k] != of_b[k])


def _said(value: Any) -> str:
    """A reference with the start of its digest, anything else as it is."""
    return f"{value[0]} {(value[1] or '')[:12]}".strip() if isinstance(value, tuple) else str(value)


def _compared(place: Place, a: Seeds, b: Seeds) -> Compared:
    of_a, of_b = (combine([Estimate.of(value, seed) for seed, (_, value) in side.items()]) for side in (a, b))
    (record, value), (other, _) = next(iter(a.values())), next(iter(b.values()))
    better = value.get("better", "lower")
    return Compared(place, better, of_a, of_b, difference(of_b, of_a), tuple(_changes(record, other)))


def _changes(a: Record, b: Record) -> Iterator[str]:
    """What of the computation is another, as far as records tell."""
    of_a, of_b = a["cell"], b["cell"]
    names = {"weights": "digest", "options": "options", "times": "times"}
    words = [word for word, name in names.items() if _rounded(of_a.get(name)) != _rounded(of_b.get(name))]
    sampled_alike = all(of_a[name] == of_b[name] for name in ("seed", "samples"))
    if a["counted_nfe"] != b["counted_nfe"] and (sampled_alike or of_a["nfe"]):  # adaptive calls are the samples'
        words.append(f"NFE {a['counted_nfe']:g} → {b['counted_nfe']:g}")
    yield from words
    if not words and sampled_alike and _metrics(a) == _metrics(b) and a["key"] != b["key"]:
        yield "plan"


def _rounded(value: Any) -> Any:
    """As keys have it: the last bits of another machine's libm are no change."""
    return [f"{t:.8e}" for t in value] if isinstance(value, list) else value


def _metrics(record: Record) -> list[tuple[Any, ...]]:
    return sorted((value["metric"], *map(str, _against(value).values())) for value in record["metrics"])


def _judged(scores: Sequence[Compared]) -> list[Compared]:
    """With verdicts and adjusted p, worst first."""
    judged = [score if score.a == score.b else replace(score, verdict=SAME) for score in scores if score.is_rounding]
    tested = [score for score in scores if not score.is_rounding]
    for score, p in zip(tested, holm([score.difference.p for score in tested]), strict=True):
        side = CHANGED if score.better == "neither" else WORSE if score.worsening > 0 else BETTER
        judged.append(replace(score, p=p, verdict=side if p < LEVEL else SAME))
    return sorted(judged, key=lambda score: (VERDICTS.index(score.verdict), -_rank(score)))


def _rank(score: Compared) -> float:
    """Larger is told first: within a verdict the larger of differences, or of what is within the noise the worse."""
    return score.worsening if score.verdict == SAME else abs(score.errors)


def _timed(run: str, a: Store, b: Store, cells: tuple[Cells, Cells], nfe: Sequence[int]) -> Iterator[Timed]:
    """The cells that both sides measured, at the first seed of each."""
    of_a, of_b = a.measurements(), b.measurements()
    for what in sorted(cells[0].keys() & cells[1].keys(), key=str):
        first, second = (side[what][min(side[what])] for side in cells)
        in_a, in_b = of_a.get(first["key"]), of_b.get(second["key"])
        if in_a and in_b and (not nfe or what[1] in nfe):
            yield Timed(run, max(series_of(first), series_of(second), key=len), what[1], in_a, in_b)
