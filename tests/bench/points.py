"""Metrics of plain points against other points, without a network between."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

import solvers
from bench.checkpoints import Checkpoint, Task
from bench.metrics import Context, Metric, Value, make_metric
from bench.stats import Floats


def metric_of(text: str, real: Floats) -> Metric:
    """The metric, with points (M, d) as the reference of its `states`."""
    checkpoint = Checkpoint(
        "points", "", nn.Identity(), solvers.EDM(), "data", real.shape[1:], (1.0,), "vector", (), {},
        moments=lambda: (real.mean(0), np.cov(real, rowvar=False, ddof=1).reshape(2 * real.shape[1:])),
        draw=lambda seed, start, count: torch.from_numpy(real),
    )  # fmt: skip
    return make_metric(text, Context(checkpoint, 0, Task(), Path("unused"), torch.device("cpu")))


def values(text: str, x: Floats, real: Floats) -> list[Value]:
    """The metric's numbers of points (N, d)."""
    return metric_of(text, real).evaluate(x, (1.0, 0.0))


def value(text: str, x: Floats, real: Floats) -> Value:
    (found,) = values(text, x, real)
    return found


def calibration(metric: Metric, draws: list[Floats]) -> dict[str, float]:
    """The mean of the standard errors that are said, over the true spread of the values, by name."""
    found: dict[str, list[tuple[float, float]]] = {}
    for x in draws:
        for v in metric.evaluate(x, (1.0, 0.0)):
            found.setdefault(v.metric, []).append((v.value, v.se))
    means = {name: np.array(pairs) for name, pairs in found.items()}
    return {name: float(pairs[:, 1].mean() / pairs[:, 0].std(ddof=1)) for name, pairs in means.items()}
