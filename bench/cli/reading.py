"""Commands that read results, and list what there is."""

from typing import Annotated, Any

import typer

from bench.cli.app import app
from bench.cli.options import Folder, Nfe, words


@app.command()
def report(folder: Folder) -> None:
    """Write the tables and plots of a results folder again, from its records."""
    from bench.report import write_report
    from bench.store import Store

    print(f"wrote {write_report(Store(folder))}")


@app.command()
def rank(
    folder: Folder,
    metric: Annotated[str | None, typer.Option("--metric", help="Default: the leaderboard's first.")] = None,
    nfe: Nfe = None,
    separate: Annotated[
        Any, typer.Option("--separate", parser=words, metavar="A,B", help="Two solvers: how many samples tell A,B?")
    ] = None,
) -> None:
    """Solvers best first at each budget, in groups that cannot be told apart."""
    from bench import rank as ranks
    from bench.store import Store

    ranking = ranks.rank(Store(folder), metric, nfe or ())
    lines = ranks.describe(ranking) if separate is None else ranks.separate(ranking, separate)
    print("\n".join(lines))


@app.command("ls")
def ls(
    what: Annotated[str, typer.Argument(help="solvers, checkpoints, students, methods or metrics")],
    verbose: Annotated[bool, typer.Option("--verbose", help="Say what each is and which options it takes.")] = False,
) -> None:
    """What there is."""
    from bench.show import print_list

    print_list(what, verbose)
