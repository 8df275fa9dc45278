"""Which solvers can be told apart: groups at each budget, and how many samples would separate two of them.

All pairs of a metric's cells that share a budget are tested by their paired difference, and the p values are adjusted
for all of them together (Holm 1979).  A group is a largest set in which no pair is told apart; groups may overlap, and
letters say who is in which (Piepho 2004, a compact letter display).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import ceil, isinf
from string import ascii_lowercase

import networkx as nx
import pandas as pd

from bench.errors import UsageError
from bench.report.leaderboard import BETTER
from bench.report.scores import Score, scores, seeds_of
from bench.report.text import counted, rounded, short_names, with_error
from bench.report.titles import metrics_of
from bench.stats import LEVEL, POWER, difference, holm, samples_to_separate
from bench.store import Store
from solvers import did_you_mean

Pair = tuple[str, str]


@dataclass(frozen=True)
class Budget:
    """The scores at one budget, best first, with each solver's groups and every pair's adjusted p."""

    nfe: int
    scores: tuple[Score, ...]
    letters: Mapping[str, str]
    p: Mapping[Pair, float]


@dataclass(frozen=True)
class Ranking:
    """One metric's budgets at so many samples a seed, and the solvers without a budget, which cannot be compared."""

    metric: str
    better: str
    samples: int
    budgets: tuple[Budget, ...]
    adaptive: tuple[str, ...]


def rank(store: Store, metric: str | None = None, nfe: Sequence[int] = ()) -> Ranking:
    """Rank the solvers of a results folder from its records alone, by its first metric if none is named.

    Raises UsageError and UnknownNameError.
    """
    name, found = _chosen(store, metric)
    fixed = [score for score in found if score.nfe is not None]
    there = sorted({score.nfe for score in fixed})
    if missing := [budget for budget in nfe if budget not in there]:
        raise UsageError(f"--nfe {missing[0]}: {store.folder} has the budgets {', '.join(map(str, there))}")
    by_budget = {b: _sorted([s for s in fixed if s.nfe == b]) for b in there if not nfe or b in nfe}
    if all(len(of_budget) < 2 for of_budget in by_budget.values()):
        raise UsageError(f"{store.folder} has one solver at each budget: ranking needs two or more")
    pairs = [(budget, a, b) for budget, of in by_budget.items() for a, b in combinations(of, 2)]
    adjusted = holm([difference(a.estimate, b.estimate).p for _, a, b in pairs])
    budgets = []
    for budget, of_budget in by_budget.items():
        p = {(a.solver, b.solver): q for (at, a, b), q in zip(pairs, adjusted, strict=True) if at == budget}
        budgets.append(Budget(budget, tuple(of_budget), letters([s.solver for s in of_budget], p), p))
    adaptive = tuple(score.solver for score in found if score.nfe is None)
    return Ranking(name, found[0].better, store.definition()["samples"], tuple(budgets), adaptive)


def _chosen(store: Store, metric: str | None) -> tuple[str, list[Score]]:
    """The metric's name and its scores; raises for a folder or a metric that cannot be ranked."""
    store.definition()
    found = scores(list(store.records()))
    if not found:
        raise UsageError(f"{store.folder} holds no finished cell: run its sweep first")
    names = metrics_of(pd.DataFrame({"metric": [score.metric for score in found]}))
    name = metric or names[0]
    if name not in names:
        raise did_you_mean("metric", name, names)
    found = [score for score in found if score.metric == name]
    if found[0].better == "neither":
        raise UsageError(f"--metric {name}: neither direction is better, so that it cannot rank")
    if any(not score.estimate.parts for score in found):
        raise UsageError(
            f"{store.folder} was written by an older version, whose records of {name} hold no parts to pair: run its "
            "sweep again into another folder"
        )
    return name, found


def _sorted(found: list[Score]) -> list[Score]:
    return sorted(found, key=lambda score: score.estimate.value * (1 if score.better == "lower" else -1))


def letters(names: Sequence[str], p: Mapping[Pair, float]) -> dict[str, str]:
    """The letters of the groups each of `names`, best first, is in; `a` is the group of the best.

    A group is a maximal clique of the graph that joins pairs not told apart.
    """
    graph = nx.Graph()
    graph.add_nodes_from(names)
    graph.add_edges_from(pair for pair, q in p.items() if q >= LEVEL)
    place = {name: i for i, name in enumerate(names)}
    groups = sorted(sorted(place[name] for name in clique) for clique in nx.find_cliques(graph))
    return {name: "".join(_letter(k) for k, group in enumerate(groups) if place[name] in group) for name in names}


def _letter(k: int) -> str:
    """a .. z, then a1 .. z1 and so on."""
    return ascii_lowercase[k % 26] + (str(k // 26) if k >= 26 else "")


def describe(ranking: Ranking) -> list[str]:
    """The ranking as lines to print."""
    first = ranking.budgets[0].scores[0]
    pairs = sum(len(budget.p) for budget in ranking.budgets)
    lines = [
        f"{ranking.metric}, {BETTER[ranking.better]}; n = {first.estimate.n:,}, {seeds_of(first)}",
        f"Who shares a letter is not told apart: {counted(pairs, 'pair')}, paired by noise, at {LEVEL:.0%} over all "
        "(Holm).",
    ]
    names = short_names(dict.fromkeys(score.solver for budget in ranking.budgets for score in budget.scores))
    width = max(map(len, names.values()))
    for budget in ranking.budgets:
        lines += ["", f"{budget.nfe} calls"]
        columns = max(len(text) for text in budget.letters.values())
        for score in budget.scores:
            number = with_error(score.estimate.value, score.estimate.se)
            lines.append(f"  {budget.letters[score.solver]:{columns}}  {names[score.solver]:{width}}  {number}")
    if ranking.adaptive:
        lines += ["", f"Left out, as they choose their own calls: {', '.join(short_names(ranking.adaptive).values())}"]
    return lines


def separate(ranking: Ranking, text: Sequence[str]) -> list[str]:
    """For each budget, how many samples would tell two solvers apart, as lines to print.

    Raises UsageError and UnknownNameError.
    """
    if len(set(text)) != 2 or len(text) != 2:
        raise UsageError(f"--separate {','.join(text)}: give two solvers with a comma between")
    there = sorted({score.solver for budget in ranking.budgets for score in budget.scores})
    for name in text:
        if name not in there:
            raise did_you_mean("solver", name, there)
    lines = [f"{ranking.metric}, {text[0]} less {text[1]}; samples a seed to see it at {LEVEL:.0%}, power {POWER:.0%}:"]
    for budget in ranking.budgets:
        pair = [score for name in text for score in budget.scores if score.solver == name]
        if len(pair) == 2:
            lines.append(f"  {budget.nfe} calls: {_separation(*pair)}")
    if len(lines) == 1:
        raise UsageError(f"--separate {','.join(text)}: the two share no budget")
    n = ranking.budgets[0].scores[0].estimate.n
    if n < ranking.samples - 1:  # pairs may leave one out
        lines.append(f"{ranking.metric} looks at {n:,} samples of a seed, however many there are: take more seeds.")
    if any(score.at_infinity for budget in ranking.budgets for score in budget.scores):
        lines.append(
            "Part of the difference may be bias, which falls as 1/n and not alike for both: see that extrapolated to "
            "infinitely many samples."
        )
    return lines


def _separation(a: Score, b: Score) -> str:
    """What two scores differ by, and the samples (of one seed) at which that shows."""
    d, n = difference(a.estimate, b.estimate), a.estimate.n
    about = f"{d.value:+.3g} ± {rounded(d.se)}"
    if a.at_infinity and b.at_infinity:
        limit = difference(a.at_infinity, b.at_infinity)
        about += f" (extrapolated {limit.value:+.3g} ± {rounded(limit.se)})"
    if not d.paired:
        about += ", not paired"
    if d.p < LEVEL:
        return f"{about}: already separated at n = {n:,}"
    estimate, lowest, highest = samples_to_separate(d, n)
    if isinf(lowest):
        return f"{about}: no difference to separate"
    return f"{about}: within the noise; about {_rough(estimate)} samples, {_rough(lowest)} or more" + (
        "" if isinf(highest) else f", {_rough(highest)} at most"
    )


def _rough(samples: float) -> str:
    """Two significant digits, rounded up."""
    size = 10 ** max(0, len(str(ceil(min(samples, 1e15)))) - 2)
    return "more than 10^15" if samples > 1e15 else f"{ceil(samples / size) * size:,}"
