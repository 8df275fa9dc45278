"""Commands that run sweeps."""

import shlex
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli.app import app
from bench.cli.options import (
    Address,
    Backend,
    Batch,
    Checkpoints,
    Device,
    File,
    Folder,
    Kept,
    Layout,
    Metrics,
    Nfe,
    Out,
    Png,
    Precision,
    PromptFile,
    Reference,
    RunBy,
    Samples,
    Scales,
    Seed,
    Set,
    Slurm,
    Solvers,
    Timeout,
    Weights,
    Workers,
)  # fmt: skip

if TYPE_CHECKING:
    from bench.runner import Job

KEYS = (  # of sweep files, that have an option each
    "checkpoint", "solvers", "nfe", "samples", "seed", "guidance", "prompts", "precision", "layout", "backend",
    "metrics", "reference", "inception_weights",
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


def _given(parameters: dict[str, Any], settings: list[str]) -> dict[str, Any]:
    """What the command line gives in place of a sweep file's keys, by its options and by --set key=value."""
    from bench.errors import UsageError
    from bench.yamlfile import Node, read_value

    options = {key: parameters[key] for key in KEYS if parameters[key] is not None}
    given = Node.of(options)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not all(words := key.strip().split(".")):
            raise UsageError(f"--set {setting!r} is not of the form key=value, as latency.rounds=9 is")
        if words[0] in options:
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
    context: typer.Context,
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
    png: Png = None,
    run_by: RunBy = "local",
    workers: Workers = None,
    address: Address = None,
    slurm: Slurm = None,
    keep: Kept = "features",
    timeout: Timeout = None,
) -> None:
    """Run a sweep, or what is left of it, and write its tables and plots.  Exit code 1 when a cell failed.

    SIGINT and SIGTERM end it once what was begun is kept; the same command goes on.
    """
    began = time.perf_counter()
    from bench.forkserver import start_server

    start_server()  # first, so that its imports run beside ours
    from bench.executors import How
    from bench.sweeps import prepare_all

    how = How(run_by, workers, address, _pairs(slurm or []), keep, timeout, png)  # type: ignore[arg-type]
    _run(prepare_all(file, _given(context.params, settings), device, out, batch, how), began)


def _run(jobs: Sequence["Job"], began: float) -> None:
    """Raises typer.Exit with 1 when a cell failed, and as the shell knows it when a signal asked for an end."""
    from bench.progress import stderr_console
    from bench.stopping import Interrupted
    from bench.sweeps import run_all

    try:
        if run_all(jobs, shlex.join(["fewstep", *sys.argv[1:]]), stderr_console(), began):
            raise typer.Exit(1)
    except Interrupted as interrupted:
        raise typer.Exit(interrupted.exit_code) from None


@app.command()
def plan(
    context: typer.Context,
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

    for job in prepare_all(file, _given(context.params, settings), device, out, batch):
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
