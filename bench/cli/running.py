"""Commands that run sweeps."""

import shlex
import sys
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


def _given(options: dict[str, Any], settings: list[str]) -> dict[str, Any]:
    """What the command line gives in place of a sweep file's keys, by its options and by --set key=value."""
    from yaml import YAMLError

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
        except (YAMLError, ValueError, RecursionError):
            raise UsageError(f"--set {setting!r}: {text!r} is not YAML") from None
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
) -> None:
    """Run a sweep, or what is left of it, and write its tables and plots.  Exit code 1 when a cell failed."""
    from bench.forkserver import start_server

    start_server()  # first, so that its imports run beside ours
    from rich.console import Console

    from bench.sweeps import prepare_all, run_all

    options = {
        "checkpoint": checkpoint, "solvers": solvers, "nfe": nfe, "samples": samples, "seed": seed,
        "guidance": guidance, "prompts": prompts, "precision": precision, "layout": layout, "backend": backend,
        "metrics": metrics, "reference": reference, "inception_weights": inception_weights,
    }  # fmt: skip
    jobs = prepare_all(file, _given(options, settings), device, out, batch)
    if run_all(jobs, shlex.join(["fewstep", *sys.argv[1:]]), png, Console(stderr=True)):
        raise typer.Exit(1)


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
def status(folder: Folder) -> None:
    """What is done, failed and left in a results folder, or in all of those in it."""
    from bench.show import print_status
    from bench.store import stores

    for store in stores(folder):
        print_status(store)


@app.command()
def schema() -> None:
    """The JSON schema of sweep files, for editors to check and complete them by."""
    import json

    from bench.sweepfile import schema as of_files

    print(json.dumps(of_files(), indent=1))
