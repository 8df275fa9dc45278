"""What long commands show while they run."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench.distilling import Order, distil, prepare
from bench.executors.local import Failure
from bench.metrics import Chunk
from bench.report import write_report
from bench.runner import Job
from bench.spec import Cell


def run_job(
    job: Job, command: str, watchers: Sequence[Callable[[Cell, Chunk], None]], console: Console
) -> list[Failure]:
    """Run what is left of an opened sweep, noting the command, write its report, and return what failed."""
    pending = job.pending
    for line in job.skipped:
        console.print(f"skipped: {line}", highlight=False, soft_wrap=True)
    for line in job.warnings:
        console.print(f"warning: {line}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    console.print(f"{len(pending)} cells to run, {len(job.cells) - len(pending)} done, in {job.store.folder}")
    with progress(console, pending) as on_chunk:
        failures = job.run(command, on_chunk, *watchers)
    with measuring_progress(console) as on_step:
        failures += job.measure(on_step)
    for failure in failures:
        line = f"failed: {failure.label}: {failure.cause}"
        console.print(line, style="red", markup=False, highlight=False, soft_wrap=True)
    if any(True for _ in job.store.records()):
        console.print(f"wrote {write_report(job.store)}", highlight=False, soft_wrap=True)
    return failures


def run_distillation(order: Order) -> bool:
    """Train a student, or go on with it, and say where it lies; False when its loss stopped being finite.

    Raises UsageError before anything is written.
    """
    run = prepare(order)
    main = run.accelerator.is_main_process
    try:
        with training_progress(Console(stderr=True, quiet=not main), order.method, run.recipe.steps) as on_step:
            distil(run, on_step)
    except FloatingPointError as error:
        kept = f"; {order.out} keeps the best student so far" if (order.out / "card.json").exists() else ""
        print(f"fewstep: {error}{kept}", file=sys.stderr)
        return False
    if main:
        print(f"wrote {order.out}")
    return True


@contextmanager
def progress(console: Console, pending: list[Cell]) -> Iterator[Callable[[Cell, Chunk], None]]:
    """A bar over the whole sweep, in network calls, with the time left; gives on_chunk(cell, chunk)."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("left"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("sweep", total=sum(cell.expected_nfe * cell.samples for cell in pending))

        def on_chunk(cell: Cell, chunk: Chunk) -> None:
            bar.update(task, advance=cell.expected_nfe * len(chunk), description=cell.label)

        yield on_chunk


@contextmanager
def measuring_progress(console: Console) -> Iterator[Callable[[str], None]]:
    """What a measuring session is at; gives on_step(text)."""
    columns = (TextColumn("measuring: {task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as line:
        task = line.add_task("", visible=False)
        yield lambda text: line.update(task, description=text, visible=True)


@contextmanager
def training_progress(console: Console, name: str, steps: int) -> Iterator[Callable[[int, float], None]]:
    """A bar over the steps of a training run with the loss; gives on_step(step, loss)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("left"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(name, total=steps)
        yield lambda step, loss: bar.update(task, completed=step + 1, description=f"{name} loss {loss:.3f}")
