"""Commands that make what sweeps run: checkpoints, students, what solvers learn."""

import shlex
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.cli.app import app
from bench.cli.completing import checkpoints, methods, one, published, tuned
from bench.cli.options import Device, Nfe, Reference, Scales, budgets, whole


@app.command()
def pull(
    name: Annotated[
        str, typer.Argument(help="A checkpoint or student of `fewstep ls`.", autocompletion=one(published))
    ],
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
    name: Annotated[str, typer.Argument(help="digits, digits_features, gmm, cifar10_jpeg or cifar10_jpeg_features")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the weights; default trained/<name>.")] = None,
    steps: Annotated[Any, typer.Option("--steps", parser=whole, metavar="N", help="Other than the recipe's.")] = None,
    seed: Annotated[Any, typer.Option("--seed", parser=whole, metavar="N", help="Of weights and batches.")] = "0",
    batch: Annotated[Any, typer.Option("--batch", parser=whole, metavar="N", help="Other than the recipe's.")] = None,
    precision: Annotated[str, typer.Option("--precision", help="fp32, or bf16 (mixed).")] = "fp32",
    device: Device = "cpu",
) -> None:
    """Make a shipped checkpoint again by its recipe, with its model card; photographs' go on where they broke off."""
    from bench.training import Order, run

    run(Order(name, out or Path("trained") / name, steps, batch, seed, precision, device))
    print(f"wrote {out or Path('trained') / name}")


@app.command()
def distill(
    method: Annotated[
        str,
        typer.Argument(
            help="A method of `fewstep ls methods`, or with options cd(points=18)", autocompletion=one(methods)
        ),
    ],
    teacher: Annotated[
        str, typer.Option("--teacher", help="A checkpoint, as sweeps take one.", autocompletion=one(checkpoints))
    ] = "digits",
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
    method: Annotated[
        str,
        typer.Argument(help="A method that learns, with settings: dc_solver(samples=20)", autocompletion=one(tuned)),
    ],
    checkpoint: Annotated[
        str,
        typer.Option("--checkpoint", help="A name, or a folder of `fewstep train`.", autocompletion=one(checkpoints)),
    ] = "digits",
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
