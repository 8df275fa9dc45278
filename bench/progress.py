"""What long commands show while they run."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench.distilling import Order, distil, prepare
from bench.executors.drive import Failure
from bench.report import write_report
from bench.runner import Job
from bench.spec import Cell
from bench.spent import Spent
from bench.stopping import Stop
from bench.watch import printable
from bench.worker import Outcome

EVERY = 10.0  # seconds between lines where there is no terminal


def run_job(job: Job, command: str, console: Console, stop: Stop, began: float) -> list[Failure]:
    """Run what is left of an opened sweep, noting the command, write its report, say where the time since `began` went,
    and return what failed.

    Raises Interrupted, once what was begun is kept.
    """
    pending, ready = job.pending, time.perf_counter()
    for line in job.skipped:
        console.print(f"skipped: {line}", highlight=False, soft_wrap=True)
    for line in job.warnings:
        console.print(f"warning: {line}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    console.print(f"{len(pending)} cells to run, {len(job.cells) - len(pending)} done, in {job.store.folder}")
    with progress(console, pending) as seen:
        failures = job.run(command, seen, stop)
    sampled = time.perf_counter()
    with measuring_progress(console) as on_step:
        failures += job.measure(on_step, stop)
    measured = time.perf_counter()
    for failure in failures:
        line = f"failed: {failure.label}: {failure.cause}"
        console.print(line, style="red", markup=False, highlight=False, soft_wrap=True)
    if any(True for _ in job.store.records()):
        with stop.at_once():
            console.print(f"wrote {write_report(job.store)}", highlight=False, soft_wrap=True)
    end = time.perf_counter()
    phases = {"starting": ready - began, "sampling": sampled - ready, "measuring": measured - sampled}
    phases["reporting"] = end - measured
    job.log.write("sweep_ended", seconds={name: round(value, 3) for name, value in phases.items()})
    console.print(where_time_went(phases, seen.spent), highlight=False, soft_wrap=True)
    return failures


def where_time_went(phases: Mapping[str, float], spent: Spent) -> str:
    """The phases of a sweep on the wall, and what workers did while it sampled; seconds."""
    lines = [f"{sum(phases.values()):.1f} s: " + ", ".join(f"{name} {s:.1f}" for name, s in phases.items())]
    if spent.sampling:
        parts = ", ".join(f"{name} {s:.1f}" for name, s in spent.rows())
        beyond = 1 - (spent.network + spent.features) / spent.sampling
        lines.append(f"sampling, all workers: {parts}; {beyond:.1%} beyond the networks of samples and features")
    return "\n".join(lines)


def stderr_console(quiet: bool = False) -> Console:
    """Standard error, with control codes only where somebody sees it, whatever the environment says of colours."""
    return Console(stderr=True, quiet=quiet, force_terminal=sys.stderr.isatty())


def run_distillation(order: Order) -> bool:
    """Train a student, or go on with it, and say where it lies; False when its loss stopped being finite.

    Raises UsageError before anything is written.
    """
    run = prepare(order)
    main = run.accelerator.is_main_process
    try:
        with training_progress(stderr_console(quiet=not main), order.method, run.recipe.steps) as on_step:
            distil(run, on_step)
    except FloatingPointError as error:
        kept = f"; {order.out} keeps the best student so far" if (order.out / "card.json").exists() else ""
        print(f"fewstep: {error}{kept}", file=sys.stderr)
        return False
    if main:
        print(f"wrote {order.out}")
    return True


class Seen:
    """What was done of a sweep so far, in network calls on single samples, and what it took."""

    def __init__(self, pending: Sequence[Cell]) -> None:
        self.total, self.done, self.spent = sum(_calls(cell, cell.samples) for cell in pending), 0, Spent()
        self.tell: Callable[[Cell], None] = lambda cell: None

    def __call__(self, cell: Cell, outcome: Outcome) -> None:
        self.spent += outcome.spent
        self.done += _calls(cell, outcome.made)
        self.tell(cell)


def _calls(cell: Cell, samples: int) -> int:
    return cell.expected_nfe * samples


@contextmanager
def progress(console: Console, pending: Sequence[Cell]) -> Iterator[Seen]:
    """A bar over the whole sweep, in network calls, with the time left; lines where there is no terminal."""
    seen = Seen(pending)
    if not console.is_terminal:
        seen.tell = _lines(console, seen)
        yield seen
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("left"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("sweep", total=seen.total)
        seen.tell = lambda cell: bar.update(task, completed=seen.done, description=escape(cell.label))
        yield seen


def _lines(console: Console, seen: Seen) -> Callable[[Cell], None]:
    """Says how far a sweep is, every so many seconds."""
    began, say = time.monotonic(), _seldom(console)

    def tell(cell: Cell) -> None:
        share = seen.done / max(seen.total, 1)
        left = timedelta(seconds=round((time.monotonic() - began) * (1 / share - 1))) if share else "unknown time"
        say(f"{share:.0%} of the network calls made, {left} left, at {cell.label}")

    return tell


def _seldom(console: Console) -> Callable[[str], None]:
    """Says a line, if it did not say another one in the last seconds."""
    last = time.monotonic()

    def say(line: str) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= EVERY:
            last = now
            console.print(printable(line), markup=False, highlight=False, soft_wrap=True)

    return say


@contextmanager
def measuring_progress(console: Console) -> Iterator[Callable[[str], None]]:
    """What a measuring session is at; gives on_step(text)."""
    if not console.is_terminal:
        say = _seldom(console)
        yield lambda text: say(f"measuring: {text}")
        return
    columns = (TextColumn("measuring: {task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as line:
        task = line.add_task("", visible=False)
        yield lambda text: line.update(task, description=text, visible=True)


@contextmanager
def training_progress(console: Console, name: str, steps: int) -> Iterator[Callable[[int, float], None]]:
    """A bar over the steps of a training run with the loss; gives on_step(step, loss)."""
    if not console.is_terminal:
        say = _seldom(console)
        yield lambda step, loss: say(f"{name}: {step + 1} of {steps} steps, loss {loss:.3f}")
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("left"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(name, total=steps)
        yield lambda step, loss: bar.update(task, completed=step + 1, description=f"{name} loss {loss:.3f}")
