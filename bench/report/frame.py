"""Records as tidy tables: one row a cell and metric."""

from collections.abc import Iterable

import pandas as pd

from bench.report.tuned import tuning_columns
from bench.store import Record

CELL = ["checkpoint", "solver", "guidance", "cfg_plus_plus", "samples", "seed", "dtype", "order"]


def tidy(records: Iterable[Record]) -> pd.DataFrame:
    """One row a cell and metric: the cell, the number with n, standard error, family and reference, and its cost."""
    rows = [row for record in records for row in _rows(record)]
    return pd.DataFrame(rows).sort_values(["metric", "solver", "nfe"], ignore_index=True)


def _rows(record: Record) -> list[dict[str, object]]:
    cell = {k: record["cell"][k] for k in CELL} | {
        "nfe": record["cell"]["nfe"] or round(record["counted_nfe"], 1),
        "guidance_interval": " ".join(f"{level:g}" for level in record["cell"]["guidance_interval"] or ()),
        "adaptive": record["cell"]["nfe"] is None,
        "counted_nfe": record["counted_nfe"],
        "forwards_per_sample": record["forwards_per_sample"],
        "t_start": record["cell"]["times"][0],
        "t_end": record["cell"]["times"][-1],
        "times": " ".join(f"{t:.6g}" for t in record["cell"]["times"]),
    }
    cell |= tuning_columns(record)
    cost: dict[str, object] = {}
    for timed in record.get("latency", []):
        at = f"batch{timed['batch']}"
        cost |= {f"latency_{at}_ms": timed["median_ms"], f"latency_{at}_iqr_ms": timed["iqr_ms"]}
        cost |= {f"network_{at}_ms": timed["network_ms"], f"solver_overhead_{at}_ms": timed["overhead_ms"]}
    if memory := record.get("memory"):
        cost |= {"peak_memory_mib": memory["peak_mib"], "memory_above_weights_mib": memory["above_weights_mib"]}
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
        | {"reference": v["reference"]["data"], "reference_sha256": v["reference"].get("sha256")}
        | cost
        | run
        for v in record["metrics"]
    ]
