"""What the command line prints: plans, states, lists."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.table import Table

import distill
import solvers
from bench.metrics import METRICS, Metric, Value, options_of
from bench.metrics.features import FEATURES, OF_SHAPE
from bench.metrics.statistics import Statistics
from bench.report.text import brief
from bench.runner import Job
from bench.show_checkpoints import print_checkpoints, print_students
from bench.spec import Cell
from bench.store import Store
from bench.tuning import Done, Refused
from solvers import did_you_mean
from solvers.tracer import COMMON, summary


def print_plan(job: Job) -> None:
    """One row a solver, then the totals."""
    pending = {cell.key for cell in job.pending}
    table = Table("solver", "order", "grid from", "to", "NFE · calls spent on tuning (* = done already)")
    for name in dict.fromkeys(cell.solver for cell in job.cells):
        cells = [cell for cell in job.cells if cell.solver == name]
        at = {_budget(c): [other.key for other in cells if other.nfe == c.nfe] for c in cells}  # a key a seed
        budgets = " ".join(budget + "*" * pending.isdisjoint(keys) for budget, keys in at.items())
        times = cells[-1].plan.times
        table.add_row(name, str(cells[0].plan.order), f"{times[0]:g}", f"{times[-1]:g}", budgets)
    console = Console()
    console.print(table)
    for line in job.skipped:
        console.print(f"skipped: {line}", highlight=False, soft_wrap=True)
    seconds = timedelta(seconds=round(job.estimate()))
    console.print(
        f"{len(pending)} cells to run on {job.device}, {job.calls():,} network calls; {len(job.unmeasured)} cells to "
        f"measure; about {seconds}; {len(job.cells) - len(pending)} done; results in {job.store.folder}",
        highlight=False,
        soft_wrap=True,
    )


def _budget(cell: Cell) -> str:
    learned = cell.plan.learned_from
    return f"{cell.nfe or 'adaptive'}" + (f"·{brief(learned.calls)}" if learned else "")


def print_learned(outcome: Done | Refused) -> None:
    """One line: what was learned, how the error fell, what it cost."""
    if isinstance(outcome, Refused):
        print(f"refused {outcome.label}: {outcome.why}")
        return
    learned, seconds = outcome.learned, outcome.seconds
    calls = f"{learned.cost.calls:,} network calls on single samples"
    fell = f"{learned.objective} {learned.curve[0][1]:.3g} -> {learned.curve[-1][1]:.3g}, " if learned.curve else ""
    took = "there already" if seconds is None else f"{seconds:.0f} s"
    print(f"{outcome.path}: {fell}{calls}, {took}", flush=True)


def print_values(values: Sequence[Value]) -> None:
    """Numbers with their errors, under what they compare within: the features' family and the reference."""
    width = max(len(v.metric) for v in values)
    for about, numbers in groupby(values, _comparable):
        print(about)
        for v in numbers:
            print(f"  {v.metric:{width}}  {v.value:.6g} ± {v.se:.2g}, n = {v.n:,}")


def _comparable(v: Value) -> str:
    data, n = v.reference["data"], v.reference.get("n")
    return v.family + ("" if data == "none" else f", against {data}") + (f", n = {n:,}" if n else "")


def print_statistics(made: Mapping[Path, Sequence[Statistics]]) -> None:
    """One line a layer, with the file it is in."""
    for path, tags in ((path, s.tags) for path, statistics in made.items() for s in statistics):
        assert tags is not None
        size = "x".join(map(str, tags.shape))
        print(f"{path}: {tags.name}, {tags.layer} of {tags.n:,} images {size}, family {tags.family}")


def print_status(store: Store) -> None:
    """Counts, and the last cause of each failure that no later run mended."""
    definition = store.definition()
    wanted = {key: (solver, nfe) for key, (solver, nfe) in definition["cells"].items()}
    done = {record["key"] for record in store.records()}
    attempts = sorted((store.folder / "attempts").glob("*.json"))
    failed = [path.stem for path in attempts if path.stem not in done]
    wants = [key for key in done if definition.get("latency") and not store.measured(key)]
    left = [cell for key, cell in wanted.items() if key not in done]
    print(f"{store.folder}: {definition['checkpoint']}, {len(done)} cells done, {len(failed)} failed, {len(left)} left")
    for solver in dict.fromkeys(name for name, _ in wanted.values()):
        todo = [str(nfe or "adaptive") for name, nfe in left if name == solver]
        count = sum(name == solver for name, _ in wanted.values())
        print(f"  {solver}: {count - len(todo)} of {count}{'; left: ' if todo else ''}{' '.join(todo)}")
    if wants:
        print(f"  {len(wants)} cells done and not measured: the same `fewstep sweep` measures them")
    for key in failed + [key for key in wants if store.failures(key)]:
        for last in store.failures(key)[-1:]:  # none that can be read, where they were damaged
            print(f"  failed: {last['cell']['solver']} nfe={last['cell']['nfe'] or 'adaptive'}: {last['cause']}")


def print_list(what: str, verbose: bool) -> None:
    """Names, one a line, and beside a metric's what this machine lacks for it; with `verbose`, what each is."""
    listings: dict[str, tuple[list[str], Callable[[str], str], Callable[[str], str]]] = {
        "solvers": (solvers.names(), str, _about_solver),
        "metrics": (METRICS.names(), _name_metric, _about_metric),
        "methods": (distill.METHODS.names(), str, _about_method),
    }
    tables = {"checkpoints": print_checkpoints, "students": print_students}
    if what in tables:
        tables[what](verbose)
        return
    if what not in listings:
        raise did_you_mean("list", what, [*listings, *tables])
    names, short, about = listings[what]
    for name in names:
        print(f"{name}\n    {about(name)}" if verbose else short(name))
    if verbose and what == "solvers":
        print(f"Options of all: {', '.join(f'{k}={v}' for k, v in COMMON.items())}; grid, t_start and t_end")


def _about_method(name: str) -> str:
    """The paper, the options and the recipe of a distillation method."""
    kind = distill.METHODS.get(name)
    recipe = ", ".join(f"{k}={v}" for k, v in dataclasses.asdict(kind.recipe).items())
    options = ", ".join(f"{k}={v}" for k, v in kind().options().items())
    about = (summary(inspect.getdoc(what)) for what in (inspect.getmodule(kind), kind))
    return "\n    ".join([*about, f"options: {options or 'none'}", f"recipe: {recipe}"])


def _about_solver(name: str) -> str:
    method = solvers.method(name)
    own = {k: v for k, v in method.defaults.items() if k not in COMMON}
    order = method.order(method.defaults) if callable(method.order) else method.order
    lines = [
        method.summary,
        f"order {order or 'none claimed'}; options: {', '.join(f'{k}={v}' for k, v in own.items()) or 'none'}",
    ]
    if method.adaptive:
        lines.append("calls: as many as the samples need")
    else:
        lines.append("grids: " + ", ".join(f"{grid} on {schedule}" for schedule, grid in method.grids.items()))
    return "\n    ".join(lines + [method.note] * bool(method.note))


def _about_metric(name: str) -> str:
    try:
        metric = METRICS.get(name)
        options, layer = ", ".join(f"{k}={v}" for k, v in options_of(metric).items()), _layer(metric)
        lines = [f"{metric.__doc__.splitlines()[0]} Needs {metric.needs}.", f"options: {options}" * bool(options)]
        if layer is not None:
            lines.append(f"features: {layer or 'the usual ones of the checkpoint'}")
        return "\n    ".join(filter(None, [*lines, _lacking(metric) or "there"]))
    except Exception as error:  # a plug-in that cannot be imported must not hide the others
        return f"cannot be used: {type(error).__name__}: {error}"


def _name_metric(name: str) -> str:
    """The name, and what this machine lacks for the metric as it is without options."""
    try:
        lacking = _lacking(METRICS.get(name))
    except Exception as error:
        lacking = f"cannot be used: {type(error).__name__}: {error}"
    return f"{name:20} {lacking}" if lacking else name


def _lacking(metric: type[Metric]) -> str:
    """What this machine lacks for a metric, in a few words; "" when nothing."""
    layer = _layer(metric)
    shipped = not layer or layer in OF_SHAPE  # and not worth the seconds that their packages take to import
    lacks = [metric.missing(), None if shipped else FEATURES.get(layer).missing(None)]
    return f"missing: {', '.join(filter(None, lacks))}" if any(lacks) else ""


def _layer(metric: type[Metric]) -> str | None:
    """The layer it looks at if no other is asked for: "" where the checkpoint decides, None where nothing does."""
    layer: str | None = getattr(metric, "layer", options_of(metric).get("features"))
    return layer
