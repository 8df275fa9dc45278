"""Options of the command line that several commands take, and what reads their values."""

from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.cli.completing import checkpoints, metrics, one, several, solvers


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


def sizes(text: str) -> tuple[int, ...]:
    """The shape of an image, CxHxW."""
    found = tuple(whole(item) for item in text.split("x"))
    if len(found) != 3 or min(found) < 1:
        raise typer.BadParameter(f"{text!r} is not of the form CxHxW, as 3x32x32 is")
    return found


def words(text: str) -> list[str]:
    """Words between commas, of which those in parentheses belong to a word."""
    from bench.words import split_list

    return split_list(text)


File = Annotated[Path | None, typer.Argument(help="A sweep file (YAML); without one, the default sweep.")]
CheckpointOption = Annotated[
    str | None,
    typer.Option("--checkpoint", help="A name, file, folder or hub:owner/name.", autocompletion=one(checkpoints)),
]
Checkpoints = Annotated[
    Any,
    typer.Option(
        "--checkpoint", parser=words, metavar="C,C,...", help="Names, files, folders or hub:owner/name.",
        autocompletion=several(checkpoints),
    ),
]  # fmt: skip
Solvers = Annotated[
    Any,
    typer.Option(
        "--solvers", parser=words, metavar="S,S,...", help="ddim,dpmpp_2m(grid=karras),my.py:f, students",
        autocompletion=several(solvers),
    ),
]  # fmt: skip
Nfe = Annotated[Any, typer.Option("--nfe", parser=budgets, metavar="N,N,...", help="Budgets of network calls.")]
Samples = Annotated[Any, typer.Option("--samples", parser=whole, metavar="N", help="Samples a cell.")]
Seed = Annotated[Any, typer.Option("--seed", parser=budgets, metavar="N,N,...", help="Seeds of the noise cells share.")]
Scales = Annotated[Any, typer.Option("--guidance", parser=scales, metavar="W,W,...", help="Scales of guidance.")]
PromptFile = Annotated[str | None, typer.Option("--prompts", help="A text file with one prompt a line.")]
Precision = Annotated[
    Any, typer.Option("--precision", parser=words, metavar="P,P,...", help="fp64, fp32, tf32, fp16, bf16.")
]
Layout = Annotated[Any, typer.Option("--layout", parser=words, metavar="L,L,...", help="contiguous, channels_last.")]
Backend = Annotated[Any, typer.Option("--backend", parser=words, metavar="B,B,...", help="eager, compile, cuda_graph.")]
Metrics = Annotated[
    Any,
    typer.Option(
        "--metrics", parser=words, metavar="M,M,...", help="fid,kid,prdc(k=3)", autocompletion=several(metrics)
    ),
]
Reference = Annotated[
    Any, typer.Option("--reference", parser=words, metavar="R,R,...", help="Folders, parquet, statistics.")
]
Weights = Annotated[str | None, typer.Option("--inception-weights", help="The weights' file, or the folder with them.")]
Set = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Any key of a sweep file, as latency.rounds=9.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Batch = Annotated[Any, typer.Option("--batch", parser=whole, metavar="N", help="Samples at a time; no number changes.")]
Out = Annotated[Path | None, typer.Option("--out", help="Results folder; default results/local-…")]
Png = Annotated[Path | None, typer.Option("--png", help="A folder to write every new sample to as PNG.")]
RunBy = Annotated[str, typer.Option("--engine", help="What does the work: local, ray, slurm.")]
Workers = Annotated[int | None, typer.Option("--workers", help="How many work at a time; default all.")]
Address = Annotated[str | None, typer.Option("--address", help="Of a Ray cluster that runs.")]
Slurm = Annotated[list[str] | None, typer.Option("--slurm", metavar="KEY=VALUE", help="For sbatch.")]
Kept = Annotated[str, typer.Option("--keep", help="Of features on disk: features, float16, moments, nothing.")]
Timeout = Annotated[float | None, typer.Option("--timeout", help="Seconds that a cell may take.")]
Folder = Annotated[Path, typer.Argument(help="A results folder.")]
Folders = Annotated[list[Path], typer.Argument(help="Results folders, or folders of them.")]
