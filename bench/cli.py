"""The command line.  Heavy imports stay inside commands, so that --help answers at once."""

import json
import shlex
import sys
import warnings
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from bench.runner import Job

app = typer.Typer(
    help="Compare fast diffusion samplers over budgets of network calls (NFE), with an error on every number.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def whole(text: str) -> int:
    """A whole number; typer's own message would not name the value."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a whole number") from None


def budgets(text: str) -> list[int]:
    """Whole numbers between commas."""
    return [whole(item) for item in text.split(",")]


def scales(text: str) -> list[float]:
    """Finite numbers between commas."""
    try:
        values = [float(item) for item in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not numbers between commas") from None
    if not all(isfinite(value) for value in values):
        raise typer.BadParameter(f"{text!r} has a scale that is not finite")
    return values


File = Annotated[Path | None, typer.Argument(help="A sweep file (YAML); without one, the default sweep.")]
CheckpointOption = Annotated[str | None, typer.Option("--checkpoint", help="A name, or a folder of `fewstep train`.")]
Solvers = Annotated[str | None, typer.Option("--solvers", help="Comma-separated: ddim,dpmpp_2m(grid=karras),my.py:f")]
Nfe = Annotated[Any, typer.Option("--nfe", parser=budgets, metavar="N,N,...", help="Budgets of network calls.")]
Samples = Annotated[Any, typer.Option("--samples", parser=whole, metavar="N", help="Samples a cell.")]
Seed = Annotated[Any, typer.Option("--seed", parser=whole, metavar="N", help="Seed of the noise all cells share.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Out = Annotated[Path | None, typer.Option("--out", help="Results folder; default results/local-…")]
Folder = Annotated[Path, typer.Argument(help="A results folder.")]


def _job(
    file: Path | None,
    checkpoint: str | None,
    solvers: str | None,
    nfe: list[int] | None,
    samples: int | None,
    seed: int | None,
    device: str,
    out: Path | None,
) -> "Job":
    from bench.files import sha256
    from bench.runner import prepare
    from bench.spec import read_sweep, split_list

    given: dict[str, Any] = {
        "checkpoint": checkpoint,
        "solvers": None if solvers is None else split_list(solvers),
        "nfe": nfe,
        "samples": samples,
        "seed": seed,
    }
    given = {k: v for k, v in given.items() if v is not None}
    sweep = read_sweep(file, given)
    name = f"local-{file.stem}" if file else f"local-{Path(sweep.checkpoint).name}"
    if given.keys() - {"checkpoint"}:  # another sweep than the default one gets a folder of its own
        name += f"-{sha256(json.dumps(given, sort_keys=True).encode())[:6]}"
    return prepare(sweep, out or Path("results") / name, device)


@app.command()
def sweep(
    file: File = None,
    checkpoint: CheckpointOption = None,
    solvers: Solvers = None,
    nfe: Nfe = None,
    samples: Samples = None,
    seed: Seed = None,
    device: Device = "auto",
    out: Out = None,
) -> None:
    """Run a sweep, or what is left of it, and write its tables and plots.  Exit code 1 when a cell failed."""
    from bench.forkserver import start_server

    start_server()  # first, so that its imports run beside ours
    from rich.console import Console

    from bench.report import write_report
    from bench.show import progress

    job = _job(file, checkpoint, solvers, nfe, samples, seed, device, out)
    job.open()
    console, pending = Console(stderr=True), job.pending
    for line in job.skipped:
        console.print(f"skipped: {line}", highlight=False)
    console.print(f"{len(pending)} cells to run, {len(job.cells) - len(pending)} done, in {job.store.folder}")
    with progress(console, pending) as on_chunk:
        failures = job.run(shlex.join(["fewstep", *sys.argv[1:]]), on_chunk)
    for failure in failures:
        console.print(f"failed: {failure.cell.label}: {failure.cause}", style="red", markup=False, highlight=False)
    if any(True for _ in job.store.records()):
        console.print(f"wrote {write_report(job.store)}", highlight=False)
    if failures:
        raise typer.Exit(1)


@app.command()
def plan(
    file: File = None,
    checkpoint: CheckpointOption = None,
    solvers: Solvers = None,
    nfe: Nfe = None,
    samples: Samples = None,
    seed: Seed = None,
    device: Device = "auto",
    out: Out = None,
) -> None:
    """What a sweep would run: cells, network calls, estimated time.  Writes nothing."""
    from bench.show import print_plan

    print_plan(_job(file, checkpoint, solvers, nfe, samples, seed, device, out))


@app.command()
def status(folder: Folder) -> None:
    """What is done, failed and left in a results folder."""
    from bench.show import print_status
    from bench.store import Store

    print_status(Store(folder))


@app.command()
def report(folder: Folder) -> None:
    """Write the tables and plots of a results folder again, from its records."""
    from bench.report import write_report
    from bench.store import Store

    print(f"wrote {write_report(Store(folder))}")


@app.command("ls")
def ls(
    what: Annotated[str, typer.Argument(help="solvers, checkpoints or metrics")],
    verbose: Annotated[bool, typer.Option("--verbose", help="Say what each is and which options it takes.")] = False,
) -> None:
    """What there is."""
    from bench.show import print_list

    print_list(what, verbose)


@app.command()
def train(
    name: Annotated[str, typer.Argument(help="digits, digits_features or gmm")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the weights; default trained/<name>.")] = None,
    steps: Annotated[Any, typer.Option("--steps", parser=whole, metavar="N", help="Other than the recipe's.")] = None,
    seed: Annotated[Any, typer.Option("--seed", parser=whole, metavar="N", help="Of weights and batches.")] = "0",
) -> None:
    """Make a shipped checkpoint again by its recipe, with its model card."""
    from rich.console import Console

    from bench.checkpoints.training import RECIPES, run_recipe
    from bench.errors import UsageError
    from bench.show import training_progress
    from solvers import did_you_mean

    if name not in RECIPES:
        raise did_you_mean("recipe", name, list(RECIPES))
    if steps is not None and steps < 1:
        raise UsageError(f"--steps {steps}: give at least 1")
    if not 0 <= seed < 2**63:
        raise UsageError(f"--seed {seed}: give a whole number from 0 to 2^63 - 1")
    folder = out or Path("trained") / name
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"--out {folder} is there already: give a new or empty folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {folder} cannot be made: {error.strerror}") from error
    with training_progress(Console(stderr=True), name, steps or RECIPES[name][1].steps) as on_step:
        run_recipe(name, folder, steps, seed, on_step)
    print(f"wrote {folder}")


@app.command()
def tune(
    method: Annotated[str, typer.Argument(help="A method that learns, with settings: dc_solver(samples=20)")],
    checkpoint: Annotated[str, typer.Option("--checkpoint", help="A name, or a folder of `fewstep train`.")] = "digits",
    nfe: Nfe = "5,6,8,10",
    guidance: Annotated[Any, typer.Option("--guidance", parser=scales, metavar="W,W,...", help="Scales.")] = "1",
    seed: Annotated[Any, typer.Option("--seed", parser=whole, metavar="N", help="Of the noise to learn from.")] = "0",
    classes: Annotated[Any, typer.Option("--classes", parser=budgets, metavar="K,K,...", help="To learn from.")] = None,
    metric: Annotated[str | None, typer.Option("--metric", help="To search for it, where a method can.")] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="float32 or float64.")] = "float32",
    device: Device = "auto",
    out: Annotated[Path, typer.Option("--out", help="Where files go, as <out>/<checkpoint>/<method>.")] = Path("tuned"),
) -> None:
    """Let a method learn from a checkpoint, once for each budget and guidance scale; sweeps find what it learned."""
    from bench.errors import UsageError
    from bench.show import print_learned
    from bench.tuning import Done, prepare

    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")  # torch's own, at its first tangent
    tuning = prepare(method, checkpoint, nfe, guidance, seed, classes, metric, dtype, device, out)
    outcomes = []
    for outcome in tuning.run(shlex.join(["fewstep", *sys.argv[1:]])):
        print_learned(outcome)
        outcomes.append(outcome)
    if not any(isinstance(outcome, Done) for outcome in outcomes):
        raise UsageError(f"nothing learned: {outcomes[0].why}")


def main() -> None:
    """Console entry point: bad input is one line on stderr and exit code 2, never a traceback."""
    try:
        sys.exit(app(standalone_mode=False))
    except typer.BadParameter.__mro__[1] as error:  # click's UsageError, which typer may have vendored
        _refuse(error.format_message())
    except (ValueError, LookupError) as error:
        if not _is_usage_error(error):
            raise
        _refuse(str(error))


def _refuse(message: str) -> None:
    print(f"fewstep: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _is_usage_error(error: Exception) -> bool:
    from bench.errors import UsageError
    from solvers import UnknownNameError

    return isinstance(error, UsageError | UnknownNameError)
