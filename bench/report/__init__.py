"""From records to what people read: tidy tables, a leaderboard, plots, image grids."""

from io import BytesIO
from pathlib import Path

from bench.files import write_atomically, write_text
from bench.report.costs import write_latency_plot
from bench.report.grids import write_grids
from bench.report.latex import latex
from bench.report.leaderboard import leaderboard
from bench.report.plots import named_solvers, write_plots
from bench.report.run import read_run
from bench.report.scores import series_of
from bench.report.students import write_students_plot
from bench.report.text import of_students
from bench.report.tuned import ratios, write_tuning_plots
from bench.store import Store


def write_report(store: Store) -> Path:
    """Write table.parquet, table.csv, leaderboard.md and .tex, plots, image grids into a results folder.

    Returns the leaderboard's path.  Raises UsageError when the folder holds no finished cell.
    """
    run = read_run(store)
    table, board, records = run.table, run.board, run.records
    buffer = BytesIO()
    table.to_parquet(buffer, index=False)
    write_atomically(store.folder / "table.parquet", lambda file: file.write(buffer.getvalue()))
    write_text(store.folder / "table.csv", table.to_csv(index=False))
    write_text(store.folder / "leaderboard.md", leaderboard(board, ratios(records), run.definition))
    write_text(store.folder / "leaderboard.tex", latex(board, run.definition))
    apart = write_students_plot(board, store.folder)  # a dozen solvers and students in one panel are not told apart
    own = of_students(board)
    write_plots(board[~own] if apart else board, store.folder)
    write_latency_plot(board, run.definition.get("quality"), store.folder)
    write_tuning_plots(board, records, store.folder)
    first = min(record["cell"]["seed"] for record in records)
    named = {*named_solvers(board[~own]), *board[own]["solver"]}  # in figures; images of all would be too many files
    pictured = [record for record in records if record["cell"]["seed"] == first and series_of(record) in named]
    write_grids(store, pictured, store.folder)
    return store.folder / "leaderboard.md"
