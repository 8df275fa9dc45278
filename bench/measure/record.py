"""A cell's measurement from the rounds of its session."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Trials = Sequence[Mapping[str, Any]]


def summaries(rounds: Sequence[Trials], name: str) -> list[dict[str, Any]]:
    """One for each batch that `name` was timed at, smallest first; milliseconds."""
    found: dict[int, list[Mapping[str, Any]]] = {}
    for trials in rounds:
        for trial in trials:
            if trial["name"] == name:
                found.setdefault(trial["batch"], []).append(trial)
    return [{"batch": batch} | summary(found[batch], batch) for batch in sorted(found)]


def summary(trials: Trials, batch: int) -> dict[str, Any]:
    """Medians and spread over rounds, and the times of all of them; steps and calls where the trials have them."""
    total = _all(trials, "total_ms")
    low, median, high = np.quantile(total, [0.25, 0.5, 0.75])
    said = {
        "median_ms": median,
        "iqr_ms": high - low,
        "p90_ms": np.quantile(total, 0.9),
        "cpu_ms": np.median(_all(trials, "cpu_ms")),
        "samples_per_s": 1e3 * batch / median,
    }
    times = {name: _all(trials, name) for name in ("total_ms", "cpu_ms")}
    if "network_ms" in trials[0]:
        times["network_ms"] = _all(trials, "network_ms")
        said["network_ms"] = np.median(times["network_ms"])
        low, said["overhead_ms"], high = np.quantile(total - times["network_ms"], [0.25, 0.5, 0.75])  # of one round
        said["overhead_iqr_ms"] = high - low
    listed = {name: np.median(_all(trials, name), axis=0) for name in ("calls_ms", "steps_ms") if name in trials[0]}
    lists = {name: _short(values) for name, values in listed.items()}
    return {k: float(v) for k, v in said.items()} | lists | {"rounds": {k: _short(v) for k, v in times.items()}}


def _all(trials: Trials, name: str) -> np.ndarray:
    return np.array([trial[name] for trial in trials])


def _short(values: np.ndarray) -> list[float]:
    """To a tenth of a microsecond."""
    return [round(float(value), 4) for value in values]
