"""Commands that run sweeps."""

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli.app import app
from bench.cli.options import (
    Batch,
    CheckpointOption,
    Device,
    Engine,
    File,
    Folder,
    Layout,
    Metrics,
    Nfe,
    Out,
    Precision,
    PromptFile,
    Reference,
    Samples,
    Scales,
    Seed,
    Solvers,
    Weights,
)  # fmt: skip

if TYPE_CHECKING:
    from bench.runner import Job


def _job(file: Path | None, given: dict[str, Any], device: str, out: Path | None, batch: int | None = None) -> "Job":
    """The checked sweep of a file, or the default one, with what was given on the command line in place of its own."""
    from bench.files import sha256
    from bench.pngs import file_name
    from bench.runner import prepare
    from bench.spec import read_sweep

    given = {k: v for k, v in given.items() if v is not None}
    sweep = read_sweep(file, given)
    name = f"local-{file.stem}" if file else f"local-{file_name(Path(sweep.checkpoint).name)}"
    if given.keys() - {"checkpoint"}:  # another sweep than the default one gets a folder of its own
        name += f"-{sha256(json.dumps(given, sort_keys=True).encode())[:6]}"
    return prepare(sweep, out or Path("results") / name, device, batch)


@app.command()
def sweep(
    file: File = None,
    checkpoint: CheckpointOption = None,
    solvers: Solvers = None,
    nfe: Nfe = None,
    samples: Samples = None,
    seed: Seed = None,
    guidance: Scales = None,
    prompts: PromptFile = None,
    precision: Precision = None,
    layout: Layout = None,
    engine: Engine = None,
    metrics: Metrics = None,
    reference: Reference = None,
    inception_weights: Weights = None,
    device: Device = "auto",
    batch: Batch = None,
    out: Out = None,
    png: Annotated[Path | None, typer.Option("--png", help="A folder to write every new sample to as PNG.")] = None,
) -> None:
    """Run a sweep, or what is left of it, and write its tables and plots.  Exit code 1 when a cell failed."""
    from bench.forkserver import start_server

    start_server()  # first, so that its imports run beside ours
    from bench.progress import run_job

    given = {
        "checkpoint": checkpoint, "solvers": solvers, "nfe": nfe, "samples": samples, "seed": seed,
        "guidance": guidance, "prompts": prompts, "precision": precision, "layout": layout, "engine": engine,
        "metrics": metrics, "reference": reference, "inception_weights": inception_weights,
    }  # fmt: skip
    job = _job(file, given, device, out, batch)
    if not run_job(job, shlex.join(["fewstep", *sys.argv[1:]]), png):
        raise typer.Exit(1)


@app.command()
def plan(
    file: File = None,
    checkpoint: CheckpointOption = None,
    solvers: Solvers = None,
    nfe: Nfe = None,
    samples: Samples = None,
    seed: Seed = None,
    guidance: Scales = None,
    prompts: PromptFile = None,
    precision: Precision = None,
    layout: Layout = None,
    engine: Engine = None,
    metrics: Metrics = None,
    reference: Reference = None,
    inception_weights: Weights = None,
    device: Device = "auto",
    batch: Batch = None,
    out: Out = None,
) -> None:
    """What a sweep would run: cells, network calls, estimated time.  Writes nothing."""
    from bench.show import print_plan

    given = {
        "checkpoint": checkpoint, "solvers": solvers, "nfe": nfe, "samples": samples, "seed": seed,
        "guidance": guidance, "prompts": prompts, "precision": precision, "layout": layout, "engine": engine,
        "metrics": metrics, "reference": reference, "inception_weights": inception_weights,
    }  # fmt: skip
    print_plan(_job(file, given, device, out, batch))


@app.command()
def status(folder: Folder) -> None:
    """What is done, failed and left in a results folder."""
    from bench.show import print_status
    from bench.store import Store

    print_status(Store(folder))
