"""A results folder as reports read it."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from bench.errors import UsageError
from bench.report.costs import judged
from bench.report.frame import tidy
from bench.report.scores import over_seeds
from bench.store import Record, Store


@dataclass(frozen=True)
class Run:
    """Its definition, its finished cells' records, their tidy table, and the same with one row a score over seeds."""

    store: Store
    definition: dict[str, Any]
    records: list[Record]
    table: pd.DataFrame
    board: pd.DataFrame


def read_run(store: Store) -> Run:
    """Raises UsageError when the folder is none of results or holds no finished cell."""
    definition, records = store.definition(), list(store.records())
    if not records:
        raise UsageError(f"{store.folder} holds no finished cell: run its sweep first")
    window = definition.get("quality")
    table = tidy(records, store.measurements(), window)
    return Run(store, definition, records, table, judged(over_seeds(table, records), window))
