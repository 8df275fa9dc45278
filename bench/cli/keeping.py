"""Commands that keep results: joined, and no larger than they need to be."""

from pathlib import Path
from typing import Annotated

import typer

from bench.cli.app import app
from bench.cli.options import Folders


@app.command()
def merge(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Results folders, parts of one sweep.")],
    out: Annotated[Path, typer.Option("--out", help="The folder to put them together in, new or empty.")],
) -> None:
    """Put results of several machines together; cells that several have must have come out the same."""
    from bench.merging import merge as merged
    from bench.report import write_report
    from bench.store import Store

    found = merged(runs, out)
    print(f"wrote {out}: {found}")
    if found.done:
        print(f"wrote {write_report(Store(out))}")


@app.command()
def clean(
    folders: Folders,
    keep: Annotated[
        str | None, typer.Option("--keep", help="Shrink features on disk to float16, moments or nothing.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would free, and free nothing.")] = False,
) -> None:
    """Free what results folders need no longer; records, images and all that a report shows stay."""
    from bench.cleaning import clean as cleaned
    from bench.store import stores

    found = list({store.folder.resolve(): store for folder in folders for store in stores(folder)}.values())
    for store in found:
        print("\n".join(cleaned(store, keep, dry_run)))
