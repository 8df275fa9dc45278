"""Commands about images that exist already, and what samples are compared with."""

from pathlib import Path
from typing import Annotated, Any

import typer

from bench.cli.app import app
from bench.cli.options import Device, Metrics, Reference, Weights, sizes, whole, words


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
