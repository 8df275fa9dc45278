"""Records as tidy tables: one row a cell and metric."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from bench.report.costs import cost_columns, judged
from bench.report.students import training_columns
from bench.report.tuned import tuning_columns
from bench.store import Record

CELL = ["checkpoint", "solver", "guidance", "cfg_plus_plus", "samples", "seed", "dtype", "order"]
LATER = ["series", "student", "precision", "layout", "backend"]  # which older records do not have


def tidy(
    records: Iterable[Record],
    measurements: Mapping[str, Record] | None = None,
    window: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """One row a cell and metric: the cell, the number with n, standard error, family and reference, and its cost.

    `measurements` are by cells' keys; `window` says which quality lets a speed count.
    """
    rows = [row for record in records for row in _rows(record, (measurements or {}).get(record["key"]))]
    return judged(pd.DataFrame(rows), window).sort_values(["metric", "solver", "nfe"], ignore_index=True)


def _rows(record: Record, measurement: Record | None) -> list[dict[str, object]]:
    cell = (
        {k: record["cell"][k] for k in CELL}
        | {k: record["cell"].get(k) for k in LATER}
        | {
            "nfe": record["cell"]["nfe"] or round(record["counted_nfe"], 1),
            "guidance_interval": " ".join(f"{level:g}" for level in record["cell"]["guidance_interval"] or ()),
            "adaptive": record["cell"]["nfe"] is None,
            "counted_nfe": record["counted_nfe"],
            "forwards_per_sample": record["forwards_per_sample"],
            "t_start": record["cell"]["times"][0],
            "t_end": record["cell"]["times"][-1],
            "times": " ".join(f"{t:.6g}" for t in record["cell"]["times"]),
        }
    )
    cell |= tuning_columns(record) | training_columns(record)
    run = {
        "device": record["environment"]["device"],
        "threads": record["environment"]["threads"],
        "commit": record["environment"]["commit"],
        "digest": record["cell"]["digest"],
        "key": record["key"],
    }
    return [
        cell
        | {k: v[k] for k in ("metric", "value", "se", "n", "family")}
        | dict(zip(("value_inf", "se_inf"), v.get("at_infinity") or (None, None), strict=True))
        | {"better": v.get("better", "lower")}
        | {"reference": v["reference"]["data"], "reference_sha256": v["reference"].get("sha256")}
        | cost_columns(measurement)
        | run
        for v in record["metrics"]
    ]
