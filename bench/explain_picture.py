"""A plan as a picture: above where on the log-SNR axis its calls lie, below which outputs make each of its states."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from itertools import count, pairwise
from math import isinf, sqrt
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import solvers
from bench.errors import UsageError
from bench.explain import LETTERS
from bench.files import nearest_folder, write_atomically
from bench.report.plots import COLOURS, STYLE
from solvers.coefficient import Pixelwise
from solvers.plan import ONES, START, Combine, Evaluate, Threshold
from solvers.schedule import Array

FORMATS: Mapping[str, Mapping[str, Any]] = {  # without dates, so that equal plans give equal files
    ".png": {"dpi": 130, "metadata": {"Software": None}},
    ".svg": {"metadata": {"Date": None}},
    ".pdf": {"metadata": {"CreationDate": None}},
}
NUMBERED = 16  # calls up to which there is room for numbers in the map
NAMED = 40  # states up to which there is room for their equations
PAST = 0.12  # of lambda's range: how far beyond the others the times are drawn at which it is infinite
VANISHING = 0.02  # weights whose sum is less than this of the largest are shown as they are

Name = tuple[str, int]  # ("x", k) a state, ("m", k) an output, ("z", k) a draw, ("1", 0) a constant
Terms = Mapping[Name, float | Array]


@dataclass(frozen=True)
class State:
    """What the network is shown at time t, or the sample: terms in states shown before, outputs, and noise."""

    t: float
    terms: Mapping[Name, float]

    def of(self, kind: str) -> dict[int, float]:
        return {k: c for (of_kind, k), c in self.terms.items() if of_kind == kind}


def states_of(plan: solvers.Plan) -> list[State]:
    """Each state that the network is shown but x_T, then the sample, in terms of those shown at other times.

    What else is kept, such as averages, and a predictor in its corrector, is put in.  A coefficient that is one number
    a pixel is shown by its mean.
    """
    shown = {i.state: i.t for i in plan.instructions if isinstance(i, Evaluate)}
    shown[plan.instructions[-1].out] = plan.times[-1]
    values: dict[int, Terms] = {START: {("x", 0): 1.0}, ONES: {("1", 0): 1.0}}
    made: dict[int, Terms] = {}
    states, calls = list[State](), count(1)
    for i in plan.instructions:
        if isinstance(i, Evaluate):
            values[i.out] = {("m", next(calls)): 1.0}
        elif isinstance(i, Threshold):
            values[i.out] = values[i.register]
        else:
            there = {r: terms for r, terms in made.items() if shown[r] == shown.get(i.out)}
            values[i.out] = _expanded(i, values | there)
            if i.out in shown:
                made[i.out] = values[i.out]
                states.append(State(shown[i.out], {n: float(np.mean(c)) for n, c in made[i.out].items()}))
                values[i.out] = {("x", len(states)): 1.0}
    return states


def _expanded(i: Combine, values: Mapping[int, Terms]) -> Terms:
    total: defaultdict[Name, float | Array] = defaultdict(float)
    for c, register in i.terms:
        for name, value in values[register].items():
            total[name] += (c.values if isinstance(c, Pixelwise) else c) * value
    for c, draw in i.noise:
        total["z", draw] += c
    return total


def weights_of(state: State) -> tuple[float, dict[int, float]]:
    """What the outputs' weighted mean is multiplied by, and their weights, whose sum is 1 unless it would vanish."""
    outputs = state.of("m")
    total = sum(outputs.values())
    if abs(total) <= VANISHING * max(map(abs, outputs.values()), default=1.0):
        total = 1.0
    return total, {k: c / total for k, c in outputs.items()}


def check_picture(path: Path) -> None:
    """Raises UsageError for a name that no picture can be written to."""
    if path.suffix not in FORMATS:
        raise UsageError(f"--out {path}: give a name that ends in {', '.join(FORMATS)}")
    if path.is_dir():
        raise UsageError(f"--out {path} is a folder: give a file")
    nearest_folder(path.parent)


def write_picture(path: Path, plan: solvers.Plan, title: str) -> None:
    """Write the plan's picture, PNG, SVG or PDF by the name's ending; raises UsageError where the disk refuses."""
    buffer = BytesIO()
    with mpl.rc_context(STYLE):
        figure_of(plan, title).savefig(buffer, format=path.suffix[1:], **FORMATS[path.suffix])
    try:
        write_atomically(path, lambda file: file.write(buffer.getvalue()))
    except OSError as error:
        raise UsageError(f"--out {path} cannot be written: {error.strerror}") from error


def figure_of(plan: solvers.Plan, title: str) -> Figure:
    states = states_of(plan)
    above, below = 1.4 + min(0.22 * plan.nfe, 5.0), 1.0 + min(0.34 * len(states), 9.0)
    figure = Figure(figsize=(10, above + below), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=(above, below))
    figure.suptitle(fill(title.replace("$", r"\$"), 100), fontsize=12)
    _draw_times(upper, plan)
    _draw_weights(figure, lower, plan, states)
    return figure


def _along_axis(plan: solvers.Plan) -> dict[float, float]:
    """Where each time is drawn: at its lambda, or beyond all others where that is infinite."""
    times = sorted({*plan.times, *plan.call_times}, reverse=True)
    lam = {t: float(plan.schedule.lam(t)) for t in times}
    finite = [v for v in lam.values() if not isinf(v)]
    past = PAST * (max(finite) - min(finite) or 1.0)
    ends = {float("inf"): max(finite) + past, float("-inf"): min(finite) - past}
    return {t: ends.get(v, v) for t, v in lam.items()}


def _draw_times(axes: Axes, plan: solvers.Plan) -> None:
    """Calls in their order, downwards, over lambda; the grid's times as lines."""
    at, grid = _along_axis(plan), set(plan.times)
    for t in plan.times:
        axes.axvline(at[t], color="#bbbbbb", linewidth=1, zorder=1)
    calls = [(at[t], k, t in grid) for k, t in enumerate(plan.call_times, 1)]
    for (a, k, _), (b, _, _) in pairwise([*calls, (at[plan.times[-1]], plan.nfe + 1, True)]):
        axes.plot([a, b, b], [k, k, k + 1], color="#888888", linewidth=1, zorder=2)
    for on, face, label in ((True, COLOURS[0], "call at a time of the grid"), (False, "white", "call between two")):
        if points := [(x, k) for x, k, there in calls if there == on]:
            x, k = zip(*points, strict=True)
            axes.scatter(x, k, s=48, facecolor=face, edgecolor=COLOURS[0], linewidth=1.6, zorder=3, label=label)
    axes.scatter(at[plan.times[-1]], plan.nfe + 1, s=60, marker="D", color=COLOURS[1], zorder=3, label="the sample")
    axes.set(xlabel=r"noise   ←   $\lambda = \log(\alpha/\sigma)$   →   data", ylabel="call")
    axes.set_yticks(_thinned(list(range(1, plan.nfe + 1))))
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=10)
    _label_levels(axes, plan, at)


def _label_levels(axes: Axes, plan: solvers.Plan, at: Mapping[float, float]) -> None:
    """sigma/alpha of the grid's times, on top; lambda without ticks where it is infinite."""
    left, right = axes.get_xlim()
    top, room = axes.twiny(), (right - left) / 16
    kept = list[float]()
    for t in plan.times:
        if not kept or at[t] - at[kept[-1]] >= room:
            kept.append(t)
    top.set_xlim(left, right)
    top.set_xticks([at[t] for t in kept], [_level(plan, t) for t in kept], fontsize=10)
    top.set_xlabel(r"$\sigma/\alpha$ at the times of the grid", fontsize=11)
    top.grid(visible=False)
    finite = [x for t, x in at.items() if not isinf(float(plan.schedule.lam(t)))]
    axes.set_xticks([x for x in axes.get_xticks() if min(finite) - 0.5 <= x <= max(finite) + 0.5])
    axes.set_xlim(left, right)


def _level(plan: solvers.Plan, t: float) -> str:
    alpha, sigma = float(plan.schedule.alpha(t)), float(plan.schedule.sigma(t))
    if alpha == 0:
        return "∞"
    return f"{sigma / alpha:.0f}" if sigma >= 100 * alpha else f"{sigma / alpha:z.2g}"


def _thinned(values: list[int], most: int = 24) -> list[int]:
    """Every so many of them, so that there is room for their labels."""
    return values[:: -(-len(values) // most)]


def _draw_weights(figure: Figure, axes: Axes, plan: solvers.Plan, states: list[State]) -> None:
    """A row a state, a column an output; on the right what else the state is made of."""
    letter = LETTERS[plan.predicts]
    table = np.full((len(states), plan.nfe), np.nan)
    for row, state in zip(table, states, strict=True):
        for k, weight in weights_of(state)[1].items():
            row[k - 1] = weight
    most = max(1.0, float(np.nanmax(np.abs(table), initial=0.0)))
    image = axes.imshow(table, cmap="PuOr_r", vmin=-most, vmax=most, aspect="auto", interpolation="nearest")
    if plan.nfe <= NUMBERED:
        for (row, column), w in np.ndenumerate(table):
            if not np.isnan(w):
                tone = "white" if abs(w) > 0.7 * most else "black"
                axes.text(column, row, f"{w:.2f}", ha="center", va="center", color=tone, fontsize=10)
    calls, rows = _thinned(list(range(1, plan.nfe + 1))), _thinned(list(range(len(states))), NAMED)
    axes.set_xticks([k - 1 for k in calls], [f"${letter}_{{{k}}}$" for k in calls])
    names = [f"$x_{{{r + 1}}}$ at {_level(plan, states[r].t)}" for r in rows]
    axes.set_yticks(rows, names, fontsize=10)
    axes.set(xlabel="output of the network, by call", ylabel=r"state, at its $\sigma/\alpha$")
    axes.grid(visible=False)
    if len(states) <= NAMED:
        right = axes.secondary_yaxis("right")
        right.set_yticks(rows, [equation(s, letter) for s in states], fontsize=10)
        right.tick_params(length=0)
    figure.colorbar(image, ax=axes, label=rf"weight in $\bar{{{letter}}}$", shrink=0.9, pad=0.02)


def equation(state: State, letter: str) -> str:
    """A state in mathtext: earlier states, the outputs' weighted mean, noise, each with its factor."""
    total, weights = weights_of(state)
    parts = [(c, rf"x_{{{k}}}") for k, c in sorted(state.of("x").items())]
    parts += [(total, rf"\bar{{{letter}}}")] if weights else []
    noise = sqrt(sum(c**2 for c in state.of("z").values()))
    parts += [(noise, "z")] if noise else []
    parts += [(c, "") for c in state.of("1").values()]
    return "$= " + " ".join(_term(c, name) for c, name in parts).removeprefix("+") + "$"


def _term(c: float, name: str) -> str:
    """+0.5 x, or +x where the factor is 1."""
    return f"{c:+.3g}"[0] + name if name and f"{abs(c):.3g}" == "1" else f"{c:+.3g}\\,{name}"
