"""Small runs for tests of the HTML page: results folders with records, images, times and failures made by hand."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.files import write_json
from bench.stats import parts_of
from bench.store import Store
from tests.bench.test_costs import measurement

N = 200
ENVIRONMENT = {"versions": {"torch": "9.9"}, "commit": "c0ffee", "device": "CPU, a quiet one", "threads": 2}
TRAINING = {
    "method": "cd(points=18)", "teacher": "digits", "calls": 900_000, "seconds": 512.3, "peak_memory_mib": 812.4,
    "device": "CPU, a quiet one", "threads": 2,
}  # fmt: skip
HOSTILE = "</script><script>window.hit = 1</script><img src=x onerror='window.hit = 1'>"


def value(metric: str, mean: float, rng: np.random.Generator, better: str = "lower") -> dict[str, Any]:
    x = mean * (1 + 0.1 * rng.normal(size=N))
    return {
        "metric": metric, "value": mean, "se": float(x.std(ddof=1) / N**0.5), "n": N, "family": "f", "better": better,
        "reference": {"data": "digits train"}, "parts": parts_of(x - x.mean()), "at_infinity": None,
    }  # fmt: skip


def record(solver: str, nfe: int, about: Mapping[str, Any]) -> dict[str, Any]:
    """A cell whose error falls with the square of its calls, and faster from solver to solver by name."""
    rng = np.random.default_rng([nfe, *map(ord, solver)])
    error = (1 + 0.2 * len(solver)) / nfe**2
    cell = {
        "checkpoint": "digits", "digest": "d" * 64, "solver": solver, "series": solver, "guidance": 1.0,
        "guidance_interval": None, "cfg_plus_plus": False, "samples": N, "seed": 0, "dtype": "float32", "order": 2,
        "nfe": nfe, "times": [1.0, 0.0], "student": False,
    }  # fmt: skip
    cell |= about
    return {
        "key": np.random.default_rng([nfe, cell["seed"], *map(ord, solver)]).bytes(32).hex(),
        "cell": cell,
        "counted_nfe": nfe,
        "forwards_per_sample": nfe,
        "metrics": [
            value("frechet_digits", 100 * error, rng),
            value("precision", 1 - error / 2, rng, "higher"),
            value("trajectory_rmse", error, rng),
        ],
        "environment": ENVIRONMENT,
        "finished": "2026-11-21T18:21:49+00:00",
    }


def write_run(
    folder: Path,
    checkpoint: str = "digits",
    solvers: Sequence[str] = ("ddim", "unipc", "dpmpp_2m"),
    nfe: Sequence[int] = (2, 5, 10),
    shape: tuple[int, int, int] | None = (1, 8, 8),
    **definition: Any,
) -> Store:
    """A run of these solvers and a student of one call; `shape` is that of its images, if it keeps any."""
    store = Store(folder)
    records = [record(solver, n, {"checkpoint": checkpoint}) for solver in solvers for n in nfe]
    records.append(record("cd", 1, {"checkpoint": checkpoint, "student": True, "training": TRAINING}))
    cells = {r["key"]: [r["cell"]["solver"], r["cell"]["nfe"]] for r in records} | {"f" * 64: ["left", 7]}
    about = {"checkpoint": checkpoint, "digest": "d" * 64, "samples": N, "cells": cells, "against": ["a: b"]}
    folder.mkdir(parents=True)
    write_json(folder / "sweep.json", about | definition)
    for k, made in enumerate(records):
        rng = np.random.default_rng(made["cell"]["nfe"])
        arrays = {"images": rng.integers(0, 255, (32, *shape), np.uint8)} if shape else {}
        store.put(made["key"], made, arrays)
        store.put_measurement(made["key"], measurement(made["key"], ms=made["cell"]["nfe"] + 0.1 * k))
    store.put_failure("f" * 64, {"cell": {"solver": "left", "nfe": 7}, "cause": f"no memory {HOSTILE}"})
    store.log_run({"command": f"fewstep sweep {HOSTILE}", "started": "2026-11-21", "environment": ENVIRONMENT})
    return store
