"""From records to what people read: tidy tables, a leaderboard, plots, image grids."""

from io import BytesIO
from pathlib import Path

from bench.errors import UsageError
from bench.files import write_atomically, write_text
from bench.report.frame import tidy
from bench.report.grids import write_grids
from bench.report.leaderboard import leaderboard
from bench.report.plots import write_plots
from bench.report.tuned import ratios, write_tuning_plots
from bench.store import Store


def write_report(store: Store) -> Path:
    """Write table.parquet, table.csv, leaderboard.md, plots, image grids into a results folder.

    Returns the leaderboard's path.  Raises UsageError when the folder holds no finished cell.
    """
    definition, records = store.definition(), list(store.records())
    if not records:
        raise UsageError(f"{store.folder} holds no finished cell: run its sweep first")
    table = tidy(records)
    buffer = BytesIO()
    table.to_parquet(buffer, index=False)
    write_atomically(store.folder / "table.parquet", lambda file: file.write(buffer.getvalue()))
    write_text(store.folder / "table.csv", table.to_csv(index=False))
    write_text(store.folder / "leaderboard.md", leaderboard(table, ratios(records), definition))
    write_plots(table, store.folder)
    write_tuning_plots(table, records, store.folder)
    write_grids(store, records, store.folder)
    return store.folder / "leaderboard.md"
