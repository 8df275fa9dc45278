"""Commands that run sweeps."""

import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.cli.app import app
from bench.cli.options import (
    Backend,
    Batch,
    Checkpoints,
    Device,
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
    Set,
    Solvers,
    Weights,
)  # fmt: skip


def _pairs(settings: list[str]) -> dict[str, str]:
    """KEY=VALUE; raises UsageError."""
    from bench.errors import UsageError

    found = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise UsageError(f"--slurm {setting!r} is not of the form key=value, as partition=gpu is")
        found[key] = value
    return found


def _given(options: dict[str, Any], settings: list[str]) -> dict[str, Any]:
    """What the command line gives in place of a sweep file's keys, by its options and by --set key=value."""
    from bench.errors import UsageError
    from bench.yamlfile import Node, read_value

    given = Node.of({k: v for k, v in options.items() if v is not None})
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not all(words := key.strip().split(".")):
            raise UsageError(f"--set {setting!r} is not of the form key=value, as latency.rounds=9 is")
        if options.get(words[0]) is not None:
            raise UsageError(f"--set {setting!r}: --{words[0].replace('_', '-')} is given too")
        try:
            value = read_value(text)
        except UsageError as error:
            raise UsageError(f"--set {setting!r}: {error}") from None
        for word in reversed(words):
            value = {word: value}
        given = Node.of(value).over(given)
    found: dict[str, Any] = given.plain()
    return found


@app.command()
def sweep(
    file: File = None,
    checkpoint: Checkpoints = None,
    solvers: Solvers = None,
    nfe: Nfe = None,
    samples: Samples = None,
    seed: Seed = None,
    guidance: Scales = None,
    prompts: PromptFile = None,
    precision: Precision = None,
    layout: Layout = None,
    backend: Backend = None,
    metrics: Metrics = None,
    reference: Reference = None,
    inception_weights: Weights = None,
    settings: Set = (),
    device: Device = "auto",
    batch: Batch = None,
    out: Out = None,
    png: Annotated[Path | None, typer.Option("--png", help="A folder to write every new sample to as PNG.")] = None,
    run_by: Annotated[str, typer.Option("--engine", help="What does the work: local, ray, slurm.")] = "local",
    workers: Annotated[int | None, typer.Option("--workers", help="How many work at a time; default all.")] = None,
    address: Annotated[str | None, typer.Option("--address", help="Of a Ray cluster that runs.")] = None,
    slurm: Annotated[list[str], typer.Option("--slurm", metavar="KEY=VALUE", help="For sbatch.")] = (),  # type: ignore[assignment]
    keep: Annotated[
        str, typer.Option("--keep", help="Of features on disk: features, float16, moments, nothing.")
    ] = "features",
    timeout: Annotated[float | None, typer.Option("--timeout", help="Seconds that a cell may take.")] = None,
) -> None:
    """Run a sweep, or what is left of it, and write its tables and plots.  Exit code 1 when a cell failed.

    SIGINT and SIGTERM end it once what was begun is kept; the same command goes on.
    """
    began = time.perf_counter()
    from bench.forkserver import start_server

    start_server()  # first, so that its imports run beside ours
    from bench.executors import How
    from bench.progress import stderr_console
    from bench.stopping import Interrupted
    from bench.sweeps import prepare_all, run_all

    options = {
        "checkpoint": checkpoint, "solvers": solvers, "nfe": nfe, "samples": samples, "seed": seed,
        "guidance": guidance, "prompts": prompts, "precision": precision, "layout": layout, "backend": backend,
        "metrics": metrics, "reference": reference, "inception_weights": inception_weights,
    }  # fmt: skip
    how = How(run_by, workers, address, _pairs(slurm), keep, timeout, png)  # type: ignore[arg-type]
    jobs = prepare_all(file, _given(options, settings), device, out, batch, how)
    try:
        if run_all(jobs, shlex.join(["fewstep", *sys.argv[1:]]), stderr_console(), began):
            raise typer.Exit(1)
    except Interrupted as interrupted:
        raise typer.Exit(interrupted.exit_code) from None


@app.command()
def plan(
    file: File = None,
    checkpoint: Checkpoints = None,
    solvers: Solvers = None,
    nfe: Nfe = None,
    samples: Samples = None,
    seed: Seed = None,
    guidance: Scales = None,
    prompts: PromptFile = None,
    precision: Precision = None,
    layout: Layout = None,
    backend: Backend = None,
    metrics: Metrics = None,
    reference: Reference = None,
    inception_weights: Weights = None,
    settings: Set = (),
    device: Device = "auto",
    batch: Batch = None,
    out: Out = None,
) -> None:
    """What a sweep would run: cells, network calls, estimated time.  Writes nothing."""
    from bench.show import print_plan
    from bench.sweeps import prepare_all

    options = {
        "checkpoint": checkpoint, "solvers": solvers, "nfe": nfe, "samples": samples, "seed": seed,
        "guidance": guidance, "prompts": prompts, "precision": precision, "layout": layout, "backend": backend,
        "metrics": metrics, "reference": reference, "inception_weights": inception_weights,
    }  # fmt: skip
    for job in prepare_all(file, _given(options, settings), device, out, batch):
        print_plan(job)


@app.command()
def status(
    folder: Folder,
    live: Annotated[bool, typer.Option("--watch", help="Show it live, until it ends.")] = False,
    every: Annotated[float, typer.Option("--every", help="Seconds between looks.")] = 2.0,
) -> None:
    """What is done, failed and left in a results folder, or in all of those in it."""
    from bench.errors import UsageError
    from bench.store import stores

    if not every > 0:
        raise UsageError(f"--every {every:g}: give more than 0 seconds")
    if live:
        from rich.console import Console

        from bench.watch import watch

        watch(stores(folder), every, Console())
        return
    from bench.show import print_status

    for store in stores(folder):
        print_status(store)


@app.command()
def schema() -> None:
    """The JSON schema of sweep files, for editors to check and complete them by."""
    import json

    from bench.sweepfile import schema as of_files

    print(json.dumps(of_files(), indent=1))
