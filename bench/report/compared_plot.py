"""The figure of a comparison: differences in standard errors, solvers down, budgets across, a panel a metric."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

from bench.compare import IDENTICAL, Compared, Comparison
from bench.pngs import file_name
from bench.report.plots import STYLE, save
from bench.report.text import cut, shown

EDGES = (-8, -4, -2, 2, 4, 8)  # standard errors; between -2 and 2 nothing is told apart
COLOURS = ("#08519c", "#4292c6", "#b8d4ea", "#f4f4f4", "#fdc38d", "#ec7014", "#9c3203")  # blue to orange: better, worse
NORM = BoundaryNorm(EDGES, len(COLOURS), extend="both")
ROW, COLUMN = 0.21, 0.42  # inches
DARK = 4  # standard errors from which numbers are white on their colour
LONGEST = 40  # letters of a solver's name


def write_compared_plots(found: Comparison, folder: Path) -> list[Path]:
    """comparison.{png,svg,pdf}, or comparison-RUN of each where runs are several; returns the files."""
    runs = list(dict.fromkeys(score.place.run for score in found.scores))
    written = []
    for run in runs:
        name = "comparison" if len(runs) == 1 else f"comparison-{file_name(run)}"
        scores = [score for score in found.scores if score.place.run == run]
        with mpl.rc_context(STYLE | {"axes.grid": False, "font.size": 9}):
            written += save(folder / name, _figure(found, run, scores))
    return written


def _figure(found: Comparison, run: str, scores: Sequence[Compared]) -> Figure:
    metrics = sorted({score.place.metric for score in scores})
    series = sorted({score.place.series for score in scores})
    budgets = sorted({score.place.nfe for score in scores}, key=lambda nfe: (nfe is None, nfe))
    width, height = 3.2 + len(metrics) * (COLUMN * len(budgets) + 0.2), 2.2 + ROW * len(series)
    figure = Figure(figsize=(max(width, 7), max(height, 3)), layout="constrained")
    panels = np.ravel(figure.subplots(1, len(metrics), sharey=True))
    for axes, metric in zip(panels, metrics, strict=True):
        _panel(axes, [score for score in scores if score.place.metric == metric], series, budgets)
        axes.set_title(metric, fontsize=10)
    panels[0].set_yticks(range(len(series)), [cut(shown(name), LONGEST) for name in series])
    figure.suptitle(f"{run}: B less A\nA = {cut(found.a, 60)}\nB = {cut(found.b, 60)}", fontsize=10)
    colours = ScalarMappable(NORM, ListedColormap(COLOURS))
    bar = figure.colorbar(colours, ax=list(panels), orientation="horizontal", fraction=0.03, aspect=50, pad=0.01)
    bar.set_label(
        "standard errors of the difference, each by itself; blue: B is better, orange: worse, or changed by so much\n"
        "across: network calls (NFE); dot: identical to the last digit; blank: not in both"
    )
    return figure


def _panel(axes: Axes, scores: Sequence[Compared], series: Sequence[str], budgets: Sequence[int | None]) -> None:
    """A square a score; numbers beyond two standard errors."""
    grid = np.full((len(series), len(budgets)), np.nan)
    for score in scores:
        y, x = series.index(score.place.series), budgets.index(score.place.nfe)
        grid[y, x] = score.worsening
        if score.verdict == IDENTICAL:
            axes.plot(x, y, ".", color="#888888", markersize=3)
        elif abs(score.worsening) >= EDGES[3]:
            colour = "white" if abs(score.worsening) >= DARK else "black"
            text = f"{np.clip(score.errors, -99, 99):+.0f}"  # there is no room for more
            axes.text(x, y, text, ha="center", va="center", fontsize=7, color=colour)
    corners = [np.arange(n + 1) - 0.5 for n in grid.shape]
    look = {"norm": NORM, "cmap": ListedColormap(COLOURS), "edgecolors": "white", "linewidth": 0.5}
    axes.pcolormesh(corners[1], corners[0], np.clip(grid, -99, 99), **look)
    axes.set_xticks(range(len(budgets)), ["ad." if nfe is None else str(nfe) for nfe in budgets])
    axes.set_ylim(len(series) - 0.5, -0.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
