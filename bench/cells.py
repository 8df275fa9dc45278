"""From a sweep to its cells: every solver and student at every budget, guidance scale and way to run the network."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import solvers
from bench.checkpoints import Checkpoint, Guide, Task
from bench.distilled import shipped
from bench.errors import UsageError
from bench.metrics import find_metric
from bench.mode import Mode
from bench.spec import TIMES, Cell, Sweep
from bench.students import Student, is_student, open_student
from bench.words import parse
from solvers.model import PREDICTION_TYPES

Program = solvers.Plan | solvers.Procedure
TYPES = {v: k for k, v in PREDICTION_TYPES.items() if v in ("data", "v")}  # which schedulers must not make of noise


@dataclass(frozen=True)
class Subjects:
    """The networks of a sweep: the checkpoint's and those of students on it, each opened once."""

    checkpoint: Checkpoint
    _students: dict[str, Student] = field(default_factory=dict)

    def student(self, text: str) -> Student:
        """The student that a sweep calls `text`; raises UsageError."""
        if text not in self._students:
            self._students[text] = open_student(text, self.checkpoint)
        return self._students[text]

    def of(self, cell: Cell) -> Checkpoint:
        """Whose network makes a cell's samples."""
        return self.student(cell.solver).checkpoint if cell.student else self.checkpoint


def cells(sweep: Sweep, subjects: Subjects, against: tuple[str, ...] = ()) -> tuple[list[Cell], list[str]]:
    """The sweep's cells, and one line for each solver that cannot spend all budgets.

    `against` is what the metrics' numbers compare within: their families and references.

    Raises UsageError for a solver that can spend none of the budgets, or options it cannot take; of the default
    sweep's, which nobody named, one that cannot run is left out, with a line that says why.
    """
    metrics = sweep.metrics_on(subjects.checkpoint)
    _check_classes(sweep, metrics)
    found: dict[str, Cell] = {}
    skipped: dict[str, None] = {}
    refused: list[UsageError] = []
    for mode, text in product(sweep.modes, sweep.solvers_on(subjects.checkpoint)):
        student = is_student(parse("solver", text)[0])
        try:
            programs = _checked(text, sweep, subjects, mode, metrics, student, skipped if sweep.solvers else {})
        except UsageError as error:
            if sweep.solvers:
                raise
            refused.append(error)
            continue
        for plan, task, digest in programs:
            axes = _axes(sweep, task, mode, student)
            training = subjects.student(text).training if student else None
            for seed in sweep.seed:
                cell = Cell(
                    subjects.checkpoint.name, digest, text, plan, sweep.samples, seed, task, mode, metrics, against,
                    student, axes, training,
                )  # fmt: skip
                found.setdefault(cell.key, cell)
    if refused and not found:
        raise refused[0]
    return list(found.values()), list(skipped | dict.fromkeys(map(str, refused)))


def _checked(
    text: str,
    sweep: Sweep,
    subjects: Subjects,
    mode: Mode,
    metrics: tuple[str, ...],
    student: bool,
    skipped: dict[str, None],
) -> list[tuple[Program, Task, str]]:
    """A solver's or student's programs, all of which can be run in the mode; raises UsageError."""
    programs = list(_programs(text, sweep, subjects, skipped))
    for plan, task, _ in programs:
        _check(text, plan, task, mode, metrics, student)
    return programs


def _programs(
    text: str, sweep: Sweep, subjects: Subjects, skipped: dict[str, None]
) -> Iterator[tuple[Program, Task, str]]:
    """What a solver or student runs, for which task and on which network, at every budget that it can spend."""
    name, options = parse("solver", text)
    if is_student(name):
        student = subjects.student(text)
        task = Task(student.guide, sweep.classes, sweep.texts)
        student.checkpoint.check(task)
        trained_for = student.sampler.trained_for
        wanted = [n for n in dict.fromkeys(sweep.nfe) if n in trained_for]
        if len(wanted) < len(set(sweep.nfe)):
            skipped[f"{student.name} runs at {', '.join(map(str, trained_for))} calls, which it was trained for"] = None
        for plan in _spendable(student.plan, wanted or sweep.nfe, {}):
            yield plan, task, student.checkpoint.digest
        return
    for task in sweep.tasks:
        subjects.checkpoint.check(task)
        for plan in _plans(text, name, options, sweep, subjects.checkpoint, task.guide, skipped):
            yield plan, task, subjects.checkpoint.digest


def _axes(sweep: Sweep, task: Task, mode: Mode, student: bool) -> str:
    """What sets a cell apart in this sweep: the scale of guidance and the ways to run, as far as there are several."""
    several = {"w": sweep.guidance, "precision": sweep.precision, "layout": sweep.layout, "backend": sweep.backend}
    ways: Mapping[str, str] = {"w": f"w={task.guide.scale:g}"} | mode.to_dict()
    return " ".join(ways[k] for k, values in several.items() if len(values) > 1 and not (k == "w" and student))


def _check_classes(sweep: Sweep, metrics: tuple[str, ...]) -> None:
    """Raises UsageError for metrics that compare with all classes where only some are sampled."""
    for metric in metrics:
        of_ode = find_metric(metric)[0].of_ode
        if sweep.classes and not of_ode:
            raise UsageError(
                f"classes: {metric} compares with all of them; metrics that can be taken of some: trajectory"
            )


def _check(text: str, plan: Program, task: Task, mode: Mode, metrics: tuple[str, ...], student: bool) -> None:
    """Raises UsageError for a program that the task or mode is not defined for, or none of the metrics applies to."""
    one_a_step = isinstance(plan, solvers.Plan) and plan.call_times in (plan.times[:-1], plan.times[1:-1])
    if task.guide.plus_plus and not one_a_step:
        raise UsageError(f"solver {text!r}: cfg_plus_plus is defined for one call at the start of each step")
    if mode.backend == "cuda_graph" and not isinstance(plan, solvers.Plan):
        raise UsageError(
            f"solver {text!r}: its steps depend on the samples, so that no CUDA graph holds them; give eager"
        )
    if (plan.draws or task.guide.plus_plus or student) and all(find_metric(metric)[0].of_ode for metric in metrics):
        raise UsageError(f"solver {text!r} follows no ODE, which {', '.join(metrics)} is about: add another metric")


def _spendable(
    build: Callable[[int | None], Program], budgets: Sequence[int | None], skipped: dict[str, None]
) -> list[Program]:
    """What `build` makes of the budgets it can spend, with a line on the others; raises UsageError when of none."""
    plans: list[Program] = []
    refused: dict[int | None, str] = {}
    for nfe in budgets:
        try:
            plans.append(build(nfe))
        except solvers.BudgetError as error:
            refused[nfe] = str(error)
    if refused:
        first, *others = refused
        if not plans:
            raise UsageError(refused[first])
        skipped[refused[first] + (f"; nor {', '.join(map(str, others))}" if others else "")] = None
    return plans


def _method(name: str) -> solvers.Solver:
    """The solver called `name`; raises UnknownNameError, which knows of students too."""
    if ":" in name or name in solvers.METHODS.builtin or name in solvers.names():  # plug-ins take long to look for
        return solvers.method(name)
    if "/" in name:
        raise UsageError(
            f"solver {name!r}: there is no student's folder, and a solver's file needs a name, file.py:name"
        )
    raise solvers.did_you_mean("solver", name, [*solvers.names(), *shipped()])


def _plans(
    text: str,
    name: str,
    options: Mapping[str, solvers.Option],
    sweep: Sweep,
    checkpoint: Checkpoint,
    guide: Guide,
    skipped: dict[str, None],
) -> list[Program]:
    """The plans of one solver at every budget it can spend; an adaptive one has one."""
    method, options = _method(name), dict(options)
    if method.learns:
        folder = Path(sweep.tuned) / checkpoint.name / method.name
        options = {"guidance": guide.scale, "tuned": str(folder)} | options
    if checkpoint.predicts in TYPES and "prediction_type" in method.defaults:
        options = {"prediction_type": TYPES[checkpoint.predicts]} | options
    where = {k: options.pop(k) for k in ("grid", *TIMES) if k in options}
    if not isinstance(where.get("grid", ""), str) or not all(isinstance(where.get(k, 0.0), int | float) for k in TIMES):
        raise UsageError(f"solver {text!r}: grid is a word; t_start and t_end are numbers")

    def build(nfe: int | None) -> Program:
        try:
            return method.build(checkpoint.schedule, nfe, **where, options=options)
        except solvers.BudgetError:
            raise
        except (ValueError, TypeError) as error:
            raise UsageError(f"solver {text!r}: {error}") from error

    plans = _spendable(build, [None] if method.adaptive else list(dict.fromkeys(sweep.nfe)), skipped)
    for plan in plans:
        learned = plan.learned_from
        if learned and learned.digest != checkpoint.digest:
            raise UsageError(
                f"solver {text!r}: {options['tuned']} was learned from checkpoint {learned.digest[:12]}, not from "
                f"{checkpoint.name} ({checkpoint.digest[:12]}): run `fewstep tune {name}` for it"
            )
    return plans
