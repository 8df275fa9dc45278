"""The command line.  Heavy imports stay inside commands, so that --help answers at once."""

import json
import shlex
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli_options import (
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
    budgets,
    sizes,
    whole,
    words,
)

if TYPE_CHECKING:
    from bench.runner import Job

app = typer.Typer(
    help="Compare fast diffusion samplers over budgets of network calls (NFE), with an error on every number.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


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


@app.command()
def report(folder: Folder) -> None:
    """Write the tables and plots of a results folder again, from its records."""
    from bench.report import write_report
    from bench.store import Store

    print(f"wrote {write_report(Store(folder))}")


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
    from bench.store import Store

    ranking = ranks.rank(Store(folder), metric, nfe or ())
    lines = ranks.describe(ranking) if separate is None else ranks.separate(ranking, separate)
    print("\n".join(lines))


@app.command("ls")
def ls(
    what: Annotated[str, typer.Argument(help="solvers, checkpoints, students, methods or metrics")],
    verbose: Annotated[bool, typer.Option("--verbose", help="Say what each is and which options it takes.")] = False,
) -> None:
    """What there is."""
    from bench.show import print_list

    print_list(what, verbose)


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="A checkpoint or student of `fewstep ls`.")],
    lock: Annotated[Path | None, typer.Option("--lock", help="A lock file to keep to, for a team to share.")] = None,
) -> None:
    """Bring a published checkpoint or student here, and lock its digest.  What broke off goes on where it was."""
    from bench.show_checkpoints import print_pulls

    print_pulls(name, lock)


@app.command()
def doctor() -> None:
    """What this machine can run: devices, memory, versions, weights, what fits."""
    from bench.doctor import print_examination

    print_examination()


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
    from bench.progress import training_progress
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
def distill(
    method: Annotated[str, typer.Argument(help="A method of `fewstep ls methods`, with options: cd(points=18)")],
    teacher: Annotated[str, typer.Option("--teacher", help="A checkpoint, as sweeps take one.")] = "digits",
    out: Annotated[Path | None, typer.Option("--out", help="Default students/<method>; goes on where it was.")] = None,
    steps: Annotated[Any, typer.Option("--steps", parser=whole, metavar="N", help="Other than the recipe's.")] = None,
    batch: Annotated[Any, typer.Option("--batch", parser=whole, metavar="N", help="Samples a step.")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate.")] = None,
    seed: Annotated[Any, typer.Option("--seed", parser=whole, metavar="N", help="Of all that is drawn.")] = "0",
    student: Annotated[str | None, typer.Option("--student", help="A checkpoint to begin with; the teacher's.")] = None,
    data: Annotated[str | None, typer.Option("--data", help="Images to learn from; default the teacher's own.")] = None,
    pool: Annotated[
        Any, typer.Option("--pool", parser=whole, metavar="N", help="Samples drawn of a teacher without.")
    ] = "4096",
    prompts: Annotated[Path | None, typer.Option("--prompts", help="A text file with one prompt a line.")] = None,
    precision: Annotated[str, typer.Option("--precision", help="fp32, or bf16 (mixed).")] = "fp32",
    metric: Annotated[str | None, typer.Option("--metric", help="Of the curve; default the teacher's first.")] = None,
    reference: Reference = "",
    samples: Annotated[
        Any, typer.Option("--samples", parser=whole, metavar="N", help="For a point of the curve.")
    ] = "1000",
    points: Annotated[Any, typer.Option("--points", parser=whole, metavar="N", help="Of the curve.")] = "20",
    device: Device = "auto",
) -> None:
    """Train a few-step student, or go on with it; its best weights, card and curve go to a folder that sweeps take."""
    from bench.distilling import Order
    from bench.pngs import file_name
    from bench.progress import run_distillation

    order = Order(
        method, teacher, out or Path("students") / file_name(method), steps, batch, lr, seed, student, data, pool,
        prompts, precision, metric, tuple(reference), samples, points, device,
    )  # fmt: skip
    if not run_distillation(order):
        raise typer.Exit(1)


@app.command()
def tune(
    method: Annotated[str, typer.Argument(help="A method that learns, with settings: dc_solver(samples=20)")],
    checkpoint: Annotated[str, typer.Option("--checkpoint", help="A name, or a folder of `fewstep train`.")] = "digits",
    nfe: Nfe = "5,6,8,10",
    guidance: Scales = "1",
    seed: Annotated[Any, typer.Option("--seed", parser=whole, metavar="N", help="Of the noise to learn from.")] = "0",
    classes: Annotated[Any, typer.Option("--classes", parser=budgets, metavar="K,K,...", help="To learn from.")] = None,
    metric: Annotated[str | None, typer.Option("--metric", help="To search for it, where a method can.")] = None,
    prompts: Annotated[Path | None, typer.Option("--prompts", help="A text file with one prompt a line.")] = None,
    precision: Annotated[str, typer.Option("--precision", help="fp32 or fp64.")] = "fp32",
    device: Device = "auto",
    out: Annotated[Path, typer.Option("--out", help="Where files go, as <out>/<checkpoint>/<method>.")] = Path("tuned"),
) -> None:
    """Let a method learn from a checkpoint, once for each budget and guidance scale; sweeps find what it learned."""
    from bench.errors import UsageError
    from bench.show import print_learned
    from bench.tuning import Done, prepare

    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")  # torch's own, at its first tangent
    tuning = prepare(method, checkpoint, nfe, guidance, seed, classes, prompts, metric, precision, device, out)
    outcomes = []
    for outcome in tuning.run(shlex.join(["fewstep", *sys.argv[1:]])):
        print_learned(outcome)
        outcomes.append(outcome)
    if not any(isinstance(outcome, Done) for outcome in outcomes):
        raise UsageError(f"nothing learned: {outcomes[0].why}")


@app.command()
def reference(
    source: Annotated[str, typer.Argument(help="A folder, parquet, npz or npy of images, or statistics: npz or pkl.")],
    features: Annotated[
        Any,
        typer.Option(
            "--features", parser=words, metavar="F,F,...", help="Comma-separated layers: inception,digits,pixels"
        ),
    ] = "",
    name: Annotated[str | None, typer.Option("--name", help="What to call it; default the source's own.")] = None,
    samples: Annotated[Any, typer.Option("--samples", parser=whole, metavar="N", help="Of foreign statistics.")] = None,
    shape: Annotated[Any, typer.Option("--shape", parser=sizes, metavar="CxHxW", help="Of foreign ones.")] = None,
    form: Annotated[str | None, typer.Option("--format", help="npz, pkl (EDM2's) or adm; default by --out.")] = None,
    inception_weights: Weights = None,
    device: Device = "auto",
    out: Annotated[Path | None, typer.Option("--out", help="A file; without one, kept here under its name.")] = None,
) -> None:
    """Compute what samples are compared with, or say of a foreign file what it is of."""
    from bench.references import Order, make
    from bench.runner import find_device
    from bench.show import print_statistics

    layers, weights = tuple(features), Path(inception_weights) if inception_weights else None
    print_statistics(make(Order(source, layers, name, samples, shape, out, form, weights, find_device(device))))


@app.command()
def score(
    images: Annotated[str, typer.Argument(help="A folder, parquet, npz or npy of images.")],
    metrics: Metrics = "fid",
    reference: Reference = "",
    inception_weights: Weights = None,
    device: Device = "auto",
    out: Annotated[Path | None, typer.Option("--out", help="A JSON file for the numbers.")] = None,
) -> None:
    """Metrics of images that exist already."""
    from rich.console import Console

    from bench.files import check_new
    from bench.images import open_images
    from bench.runner import find_device
    from bench.scoring import context_of, metrics_of, write_scores
    from bench.scoring import score as numbers
    from bench.show import print_values

    if out:
        check_new(out)
    found, on = open_images(images), find_device(device)
    weights = Path(inception_weights) if inception_weights else None
    context = context_of(images, found.shape, reference, weights, on)
    ready = metrics_of(metrics, found, context)
    for line in (line for metric in ready for line in metric.warnings(len(found))):
        Console(stderr=True).print(f"warning: {line}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    values = numbers(ready, found)
    print_values(values)
    if out:
        write_scores(out, values, found, on)


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
