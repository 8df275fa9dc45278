"""Commands that read results, and list what there is."""

from pathlib import Path
from typing import Annotated, Any

import typer

from bench.cli.app import app
from bench.cli.completing import lists, one
from bench.cli.options import Folder, Folders, Nfe, words


@app.command()
def report(
    folders: Folders,
    html: Annotated[bool, typer.Option("--html", help="Write one HTML page of all, which opens offline.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="The page; default report.html in the one folder.")] = None,
) -> None:
    """Write the tables and plots of results folders again, from their records, or with --html a page of them."""
    from bench.errors import UsageError
    from bench.store import stores

    if out and not html:
        raise UsageError(f"--out {out} is where the page goes: give --html too; tables and plots stay in their folders")
    if html and not out and len(folders) > 1:
        raise UsageError(f"{len(folders)} folders and --html: say where the page goes, --out FILE")
    found = list({store.folder.resolve(): store for folder in folders for store in stores(folder)}.values())
    if html:
        from bench.report.page import write_page

        print(f"wrote {write_page(found, out or folders[0] / 'report.html')}")
        return
    from bench.report import write_report

    for store in found:
        print(f"wrote {write_report(store)}")


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
    from bench.store import stores

    found = stores(folder)
    for store in found:
        ranking = ranks.rank(store, metric, nfe or ())
        lines = ranks.describe(ranking) if separate is None else ranks.separate(ranking, separate)
        print("\n".join([f"{store.folder}:"] * (len(found) > 1) + lines))


@app.command("ls")
def ls(
    what: Annotated[
        str, typer.Argument(help="solvers, checkpoints, students, methods or metrics", autocompletion=one(lists))
    ],
    verbose: Annotated[bool, typer.Option("--verbose", help="Say what each is and which options it takes.")] = False,
) -> None:
    """What there is."""
    from bench.show import print_list

    print_list(what, verbose)
