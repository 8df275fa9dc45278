"""The command that explains a solver."""

from pathlib import Path
from typing import Annotated, Any

import typer

from bench.cli.app import app
from bench.cli.completing import one, solvers
from bench.cli.options import CheckpointOption, whole


@app.command()
def explain(
    solver: Annotated[
        str,
        typer.Argument(
            help="A solver or student as sweeps take it: dpmpp_2m(grid=karras)", autocompletion=one(solvers)
        ),
    ],
    nfe: Annotated[Any, typer.Option("--nfe", parser=whole, metavar="N", help="The budget of network calls.")] = "8",
    checkpoint: CheckpointOption = None,
    schedule: Annotated[
        str | None, typer.Option("--schedule", help="In its place: edm, vp_linear, vp_cosine, ddpm, flow, …")
    ] = None,
    tuned: Annotated[str, typer.Option("--tuned", help="Where `fewstep tune` wrote what solvers learned.")] = "tuned",
    out: Annotated[
        Path | None, typer.Option("--out", help="The picture, .png, .svg or .pdf; default explain-<solver>-nfe<N>.png")
    ] = None,
) -> None:
    """What a solver does at a budget: its paper, its plan call by call, and a picture of times and coefficients."""
    from bench.explain import explain as explained
    from bench.explain_picture import check_picture, write_picture
    from bench.pngs import file_name

    path = out or Path(f"explain-{file_name(solver)}-nfe{nfe}.png")
    check_picture(path)
    found = explained(solver, nfe, checkpoint, schedule, tuned)
    if found.plan:
        write_picture(path, found.plan, f"{found.text} at {found.plan.nfe} calls, {found.where}")
    print(found)
    print(f"\nwrote {path}" if found.plan else "\nno picture: the times depend on the samples")
