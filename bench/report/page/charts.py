"""The page's charts as Vega-Lite specifications; the script fills in their data, `points`, and their parameters.

A point carries its own look: solvers that are chosen are `loud`, have a colour and a shape; all others are grey.
"""

from functools import cache
from typing import Any

import altair as alt

from bench.report.plots import APART, FAR

GREY, DARK, GRID, TEXT = "#b4b4b4", "#595959", "#e6e6e6", "#222222"
COSTS = {
    "latency": "milliseconds a trajectory, batch 1",
    "time": "milliseconds a sample, at the batch of best throughput",
    "memory": "peak memory above the weights, MiB",
}
SCALES = ("log", "linear")  # of values
QUIET, LOUD = "!datum.loud", "datum.loud"
LOG = alt.Scale(type="log", nice=False, padding=12)
LINEAR = alt.Scale(type="linear", zero=False, nice=False, padding=12)
CUT = alt.Scale(type="log", nice=False, padding=12, domainMax=alt.ExprRef("top"))  # what lies higher is cut off
COLOUR = alt.Color("colour:N", scale=None, legend=None)
SHAPE = alt.Shape("shape:N", scale=None, legend=None)
DASH = alt.StrokeDash("dash:N", scale=None, legend=None)
CONFIG: dict[str, Any] = {
    "font": "system-ui, sans-serif",
    "axis": {
        "gridColor": GRID, "domainColor": DARK, "tickColor": DARK, "labelColor": TEXT, "titleColor": TEXT,
        "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "labelOverlap": "greedy", "aria": False,
    },
    "title": {"fontSize": 12, "fontWeight": "normal", "anchor": "start", "color": TEXT, "offset": 10, "aria": False},
    "view": {"stroke": None},
    "mark": {"aria": False},  # a chart has one description; its numbers stand in the tables
}  # fmt: skip


@cache
def charts() -> dict[str, Any]:
    """Specifications by name: with values on a logarithmic axis (`log`) and on a linear one."""
    return {
        "quality": {scale: _quality(scale) for scale in SCALES},
        "pareto": {cost: {scale: _pareto(cost, scale) for scale in SCALES} for cost in COSTS},
        "amortised": _amortised(),
        "cut": {"far": FAR, "many": APART},  # where logarithmic axes end, as in the figures
    }


def _quality(scale: str) -> dict[str, Any]:
    """Values against calls, a line a solver; bars of two standard errors on those that are chosen."""
    x = alt.X("nfe:Q", title="network calls (NFE)", scale=LOG)
    base = _base(x.axis(values=alt.ExprRef("ticks"), format="~g", grid=False), _value(scale))
    bars = (
        base.transform_filter(LOUD).mark_rule(strokeWidth=1.4, clip=True).encode(y="low:Q", y2="high:Q", color=COLOUR)
    )
    return _spec(*_lines(base, "solver"), bars, *_points(base))


def _pareto(cost: str, scale: str) -> dict[str, Any]:
    """Values against one cost; the front is a stepped line, its cells are ringed and named.

    Speeds that do not count, as the sweep's window says, are hollow.
    """
    of_cost = LINEAR if cost == "memory" else LOG  # memory may be 0
    base = _base(alt.X("cost:Q", title=COSTS[cost], scale=of_cost).axis(format="~g", grid=False), _value(scale))
    front = base.transform_filter("datum.front")
    step = front.mark_line(interpolate="step-after", color=DARK, strokeWidth=1.2, clip=True)
    rings = front.mark_point(size=170, color=TEXT, strokeWidth=1.3)
    names = front.mark_text(align="left", baseline="bottom", dx=6, dy=-6, fontSize=11, color=TEXT)
    return _spec(step, *_points(base), rings, names.encode(text="label:N"))


def _amortised() -> dict[str, Any]:
    """Forwards an image, with what was spent beforehand shared among all images, against how many are made."""
    x = alt.X("images:Q", title="images made", scale=LOG).axis(format="~s", grid=False)
    y = alt.Y("forwards:Q", title=None, scale=LOG).axis(format="~s")
    return _spec(*_lines(_base(x, y), "line"))


def _base(x: alt.X, y: alt.Y) -> alt.Chart:
    return alt.Chart(alt.NamedData("points")).encode(x=x, y=y, tooltip=alt.value(None))


def _value(scale: str) -> alt.Y:
    """Values; the chart's title, above their axis, names them."""
    return alt.Y("value:Q", title=None, scale=CUT if scale == "log" else LINEAR).axis(format="~g")


def _lines(base: alt.Chart, of: str) -> tuple[alt.Chart, alt.Chart]:
    """A line for each value of the field `of`."""
    quiet = base.transform_filter(QUIET).mark_line(color=GREY, strokeWidth=0.8, clip=True)
    loud = base.transform_filter(LOUD).mark_line(strokeWidth=2.2, clip=True)
    return quiet.encode(detail=f"{of}:N"), loud.encode(detail=f"{of}:N", color=COLOUR, strokeDash=DASH)


def _points(base: alt.Chart) -> tuple[alt.Chart, alt.Chart]:
    """A mark a cell, that says what it is when pointed at."""
    base = base.encode(tooltip="text:N")
    hollow = alt.FillOpacity("fill:Q", scale=None, legend=None)
    quiet = base.transform_filter(QUIET).mark_point(size=22, color=GREY, fill=GREY, strokeWidth=1, clip=True)
    loud = base.transform_filter(LOUD).mark_point(size=70, strokeWidth=1.5, clip=True)
    colours = {"color": COLOUR, "fill": alt.Fill("colour:N", scale=None, legend=None), "shape": SHAPE}
    return quiet.encode(fillOpacity=hollow), loud.encode(fillOpacity=hollow, **colours)


def _spec(*layers: alt.Chart) -> dict[str, Any]:
    """The layers as one chart as wide as its place, with the parameters that the script sets."""
    params = [alt.param(name=name, value=value) for name, value in (("ticks", []), ("caption", ""), ("top", 1))]
    chart = alt.layer(*layers, title=alt.TitleParams(text=alt.ExprRef("caption")))
    chart = chart.properties(width="container", height=400, autosize=alt.AutoSizeParams(type="fit", contains="padding"))
    return chart.add_params(*params).configure(**CONFIG).to_dict(validate=False)
