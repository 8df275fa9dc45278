"""The command that writes results for other tools."""

from pathlib import Path
from typing import Annotated

import typer

from bench.cli.app import app
from bench.cli.options import Folder


@app.command()
def export(
    folder: Folder,
    to: Annotated[str, typer.Option("--to", help="tensorboard or mlflow")],
    out: Annotated[Path | None, typer.Option("--out", help="Where; default <folder>/tensorboard or /mlflow.")] = None,
) -> None:
    """Write a results folder, or all in a folder, as TensorBoard's event files or an MLflow tracking store."""
    from bench.export import export as exported

    print(f"wrote {exported(folder, to, out)}")
