"""A student's quality while it was trained."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from bench.files import write_atomically
from bench.report.plots import COLOURS, STYLE


def write_curve(
    path: Path, curve: Sequence[tuple[int, float]], best: tuple[int, float], metric: str, title: str
) -> None:
    """A PNG of (step, quality on held-out noise), with the point that was kept."""
    steps, values = zip(*curve, strict=True)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.5, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot(steps, values, "o-", color=COLOURS[0], markersize=4)
        axes.plot(*best, "D", color=COLOURS[1], markersize=9, label=f"kept: step {best[0]:,}")
        axes.set(title=title, xlabel="training step", ylabel=f"{metric}, held-out noise")
        axes.title.set_fontsize(12)
        if min(values) > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.legend()
        write_atomically(path, lambda file: figure.savefig(file, dpi=110, metadata={"Software": None}))
