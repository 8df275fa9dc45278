"""Commands that compare results with others."""

from pathlib import Path
from typing import Annotated

import typer

from bench.cli.app import app
from bench.cli.options import Nfe


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A results folder, a folder of several, REV:PATH or REV.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another, compared with it.")],
    metric: Annotated[str | None, typer.Option("--metric", help="Default: all that both have.")] = None,
    nfe: Nfe = None,
    out: Annotated[Path | None, typer.Option("--out", help="A folder for Markdown, CSV and figures.")] = None,
) -> None:
    """What changed between two runs or two commits: by how many standard errors, and what is missing."""
    from bench import compare as comparing
    from bench.files import nearest_folder
    from bench.report.compared import write_comparison
    from bench.revisions import opened
    from bench.show_comparison import print_comparison

    if out:
        nearest_folder(out)
    with opened(a) as of_a, opened(b) as of_b:
        found = comparing.compare((a, b), of_a, of_b, metric, nfe or ())
    print_comparison(found)
    if out:
        for path in write_comparison(found, out):
            print(f"wrote {path}")
