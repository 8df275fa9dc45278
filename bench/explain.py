"""What a solver will do at a budget: its paper, its facts, and its plan call by call with every coefficient."""

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from math import inf
from types import MappingProxyType

import distill
import solvers
from bench.cells import Program, Subjects, cells
from bench.checkpoints import Checkpoint, load
from bench.distilled import folder_of, read_student, sampler_of
from bench.errors import UsageError
from bench.report.text import counted
from bench.spec import Sweep
from bench.students import entry, is_student
from bench.words import parse
from solvers.plan import ONES, START, Combine, Evaluate, Threshold
from solvers.schedule import Schedule
from solvers.time_shift import TimeShift
from solvers.tracer import Method, summary

SCHEDULES: Mapping[str, Schedule] = MappingProxyType({
    "edm": solvers.EDM(),
    "vp_linear": solvers.VPLinear(),
    "vp_cosine": solvers.VPCosine(),
    "ddpm": solvers.VPDiscrete.linear(),
    "stable_diffusion": solvers.VPDiscrete.scaled_linear(),
    "flow": solvers.RectifiedFlow(),
})  # fmt: skip
LETTERS = {"data": "D", "noise": "e", "v": "v", "velocity": "v"}  # of the network's outputs
MOST = 1_000  # calls: a table that nobody reads
HEADER = ("call", "step", "t", "sigma/alpha", "lambda", "held", "what is computed")


@dataclass(frozen=True)
class Explained:
    """A solver as it was asked for, on a checkpoint or a bare schedule, and what it will run."""

    text: str
    where: str
    program: Program

    @property
    def plan(self) -> solvers.Plan | None:
        """The instructions; those that Time-Shift starts from; None where the states decide about all steps."""
        program = self.program.plan if isinstance(self.program, TimeShift) else self.program
        return program if isinstance(program, solvers.Plan) else None

    def __str__(self) -> str:
        plan = self.plan
        table = ["", *table_of(plan)] if plan else []
        return "\n".join([f"{self.text} on {self.where}", "", documentation(self.text), "", *self._facts(), *table])

    def _facts(self) -> list[str]:
        program, learned = self.program, self.program.learned_from
        facts = [_spending(program, self.plan)]
        facts.append("options: " + (", ".join(f"{k}={v}" for k, v in program.options) or "none"))
        if isinstance(program, TimeShift):
            facts.append("calls after the first go to the times that states show; the table has those of the base")
        if learned:
            facts.append(f"learned from checkpoint {learned.digest[:12]}, {learned.objective}, {learned.calls:,} calls")
        return [*facts, f"schedule: {_named(program.schedule)}; {_grid(self.text, program)}"]


def explain(text: str, nfe: int, checkpoint: str | None, schedule: str | None, tuned: str) -> Explained:
    """What a sweep would run for a solver or student at a budget, on a checkpoint (default: digits) or a schedule.

    Raises UsageError and UnknownNameError.
    """
    if not 1 <= nfe <= MOST:
        raise UsageError(f"--nfe {nfe}: give a whole number from 1 to {MOST}")
    if schedule is None:
        opened = load(checkpoint or "digits")
        return Explained(text, opened.name, _on_checkpoint(text, nfe, opened, tuned))
    if checkpoint is not None:
        raise UsageError(f"--schedule {schedule}: a checkpoint has a schedule of its own: give one of the two")
    if schedule not in SCHEDULES:
        raise solvers.did_you_mean("schedule", schedule, list(SCHEDULES))
    return Explained(text, f"schedule {schedule}", _on_schedule(text, nfe, SCHEDULES[schedule]))


def _on_checkpoint(text: str, nfe: int, checkpoint: Checkpoint, tuned: str) -> Program:
    sweep = Sweep(checkpoint=checkpoint.name, solvers=(text,), nfe=(nfe,), tuned=tuned)
    found, _ = cells(sweep, Subjects(checkpoint))
    return found[0].plan


def _on_schedule(text: str, nfe: int, schedule: Schedule) -> Program:
    name, options = parse("solver", text)
    if is_student(name):
        raise UsageError(f"solver {text!r}: a student belongs to its teacher: give --checkpoint, not --schedule")
    method = solvers.method(name)
    try:
        return solvers.plan(name, schedule, None if method.adaptive else nfe, **options)  # type: ignore[arg-type]
    except (ValueError, TypeError) as error:
        raise UsageError(f"solver {text!r}: {error}") from error


def documentation(text: str) -> str:
    """What the solver's file says of it, with its paper and equations; of a student, its method's and its sampler's."""
    name, _ = parse("solver", text)
    if is_student(name):
        return _of_student(name)
    method = solvers.method(name)
    trace = method.trace if isinstance(method, Method) else type(method)
    whole = inspect.getdoc(inspect.getmodule(trace)) or ""
    about = [whole if summary(whole) == method.summary else method.summary]
    about += [inspect.getdoc(trace) or ""] * isinstance(method, Method)
    return "\n\n".join(filter(None, [*about, f"Note: {method.note}" * bool(method.note)]))


def _of_student(name: str) -> str:
    if folder := folder_of(name):
        card = read_student(folder)
        kind = distill.METHODS.get(parse("method", card["method"])[0])
        about = [f"A student of {card['teacher']['name']}, distilled by {card['method']}.", inspect.getdoc(kind) or ""]
        sampler = sampler_of(folder, card).solver
    else:
        published = entry(name)
        about, sampler = [published.about], published.sampler.solver
    return "\n\n".join([*about, f"Sampled by {sampler}: {solvers.method(sampler).summary}"])


def _spending(program: Program, plan: solvers.Plan | None) -> str:
    if plan is None:
        return "no fixed plan: " + str(program).partition(": ")[2]
    order = f"order {program.order}" if program.order else "no order claimed"
    noise = counted(plan.draws, "noise draw") if plan.draws else "no noise"
    spent = [counted(plan.nfe, "call"), counted(plan.buffers, "buffer"), noise]
    return ", ".join([order, f"{program.predicts} prediction", *spent])


def _named(schedule: Schedule) -> str:
    """With its parameters, but for a thousand betas."""
    values = dataclasses.asdict(schedule).items()
    shown = (f"{len(v)} {k}" if isinstance(v, tuple) else f"{k}={v:g}" for k, v in values)
    return f"{type(schedule).__name__}({', '.join(shown)})"


def _grid(text: str, program: Program) -> str:
    name, options = parse("solver", text)
    grids = {} if is_student(name) else getattr(solvers.method(name), "grids", {})
    grid = options.get("grid") or grids.get(type(program.schedule).__name__, grids.get("*"))
    return f"from t = {program.times[0]:g} to {program.times[-1]:g}" + (f" on the grid {grid}" if grid else "")


def names_of(plan: solvers.Plan) -> dict[int, str]:
    """What registers are called: x0, x1, ... what was combined, and by the calls that gave them D1, D2, ... (e, v)."""
    names, states, calls = {START: "x0", ONES: ""}, count(1), count(1)
    for i in plan.instructions:
        if isinstance(i, Threshold):
            names[i.out] = names[i.register] + "'"
        else:
            names[i.out] = f"x{next(states)}" if isinstance(i, Combine) else f"{LETTERS[plan.predicts]}{next(calls)}"
    return names


def times_of(plan: solvers.Plan) -> dict[int, float]:
    """The times at which states stand: where the network looks at them, and the end for the sample."""
    return {i.state: i.t for i in plan.instructions if isinstance(i, Evaluate)} | {
        plan.instructions[-1].out: plan.times[-1]
    }


def table_of(plan: solvers.Plan) -> list[str]:
    """One line an instruction: its call, time and level, the registers in use behind it, and what it computes."""
    names, times, calls, held = names_of(plan), times_of(plan), count(1), 1
    rows: list[tuple[str, ...]] = [HEADER]
    for i, dead in zip(plan.instructions, plan.dies, strict=True):
        held += 1 - len(dead)
        call = str(next(calls)) if isinstance(i, Evaluate) else ""
        t = i.t if isinstance(i, Evaluate) else times.get(i.out)
        rows.append((call, *_place(plan, t), str(held), f"{names[i.out]} = {_computed(i, names)}"))
    widths = [max(len(row[c]) for row in rows) for c in range(len(HEADER) - 1)]
    return [_line(row, widths) for row in rows]


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join([*(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=False)), row[-1]])


def _place(plan: solvers.Plan, t: float | None) -> tuple[str, str, str, str]:
    """The step that begins at a time, or the two between which it lies; the time, sigma/alpha and lambda."""
    if t is None:
        return "", "", "", ""
    before = sum(s > t for s in plan.times)
    step = f"{before}" if t in plan.times else f"{before - 1}-{before}"
    alpha, sigma = float(plan.schedule.alpha(t)), float(plan.schedule.sigma(t))
    level = sigma / alpha if alpha else inf
    return step, f"{t:.6g}", f"{level:z.6g}", f"{float(plan.schedule.lam(t)):.4g}"


def _computed(i: Combine | Evaluate | Threshold, names: Mapping[int, str]) -> str:
    if isinstance(i, Evaluate):
        return f"network({names[i.state]})"
    if isinstance(i, Threshold):
        return f"{i.rule} threshold({names[i.register]})"
    terms = [f"{c:+.6g} {names[r]}".strip() for c, r in i.terms] + [f"{c:+.6g} z{k}" for c, k in i.noise]
    return " ".join(terms).removeprefix("+")
