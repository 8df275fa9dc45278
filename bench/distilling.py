"""Training students: everything checked first, then a run that goes on where it was broken off.

<out>/run.json            what is trained: a folder goes on with that alone
      state.pt            where an interrupted training goes on, to the bit
      samples.pt          the teacher's own samples, where students learn from them
      model.safetensors, card.json, README.md, curve.png
                          the best student so far; of the earlier stages of progressive distillation in <out>/<N>step
"""

import json
import pickle
import resource
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from bench.cell import run as run_cell
from bench.checkpoints import Checkpoint, Guide, Task, load
from bench.checkpoints.bundle import write_bundle
from bench.checkpoints.cards import write_readme
from bench.checkpoints.prompts import read_prompts
from bench.distilled import KIND, make_method
from bench.environment import environment
from bench.errors import UsageError
from bench.files import nearest_folder, write_atomically, write_json
from bench.metrics import Context, Metric, make_metric
from bench.mode import Mode
from bench.report.curve import write_curve
from bench.runner import find_device
from bench.spec import Cell
from bench.teaching import CALLS, images_in, own_samples, pool_of, teacher_of
from distill import Method
from distill.batch import Data
from distill.distillation import Distillation, Weights, check
from distill.method import Teacher
from distill.student import FewStep
from distill.trainer import Recipe
from solvers.model import Denoiser

HELD_OUT = 2**40  # the seed that the curve's samples are drawn from: no sweep's, unless somebody asks for it
PRECISIONS = {"fp32": "no", "bf16": "bf16"}  # as accelerate calls them
MIB = 2**20


@dataclass(frozen=True)
class Order:
    """What `fewstep distill` was asked for; None is the method's own recipe, or what the teacher has."""

    method: str
    teacher: str
    out: Path
    steps: int | None = None
    batch: int | None = None
    lr: float | None = None
    seed: int = 0
    student: str | None = None
    data: str | None = None
    pool: int = 4096
    prompts: Path | None = None
    precision: str = "fp32"
    metric: str | None = None
    reference: tuple[str, ...] = ()
    samples: int = 1000
    points: int = 20
    device: str = "auto"

    @property
    def command(self) -> str:
        """What trains the same student again, wherever it is to lie."""
        given = [(f.name, getattr(self, f.name), f.default) for f in fields(self) if f.name not in ("method", "out")]
        words = [(f"--{k}", ",".join(v) if isinstance(v, tuple) else str(v)) for k, v, usual in given if v != usual]
        return shlex.join(["fewstep", "distill", self.method, *(word for pair in words for word in pair)])


@dataclass
class Run:
    """A checked distillation: what is trained, on which data, and how students are judged."""

    order: Order
    method: Method
    recipe: Recipe
    checkpoint: Checkpoint
    begun: Checkpoint
    task: Task
    metric: str
    accelerator: Accelerator
    data: Data | None  # None: samples of the teacher's own

    @property
    def definition(self) -> dict[str, Any]:
        """What makes the student what it is, JSON-able; of one thing two trainings are never mixed."""
        given = {k: asdict(self.order)[k] for k in ("data", "precision", "reference", "samples", "points")}
        data = given["data"] or ("its training data" if self.checkpoint.training else f"{self.order.pool} samples")
        prompts = self.task.prompts.to_dict() if self.task.prompts else None
        return given | {
            "method": self.order.method,
            "options": self.method.options(),
            "recipe": asdict(self.recipe),
            "teacher": _named(self.checkpoint),
            "student": _named(self.begun) | {"name": self.order.student} if self.order.student else None,
            "data": data,
            "metric": self.metric,
            "prompts": prompts,
        }

    def teacher(self) -> Teacher:
        """The teacher with its data: its own, the images named, or samples drawn of it, the first time only."""
        device, checkpoint, order = self.accelerator.device, self.checkpoint, self.order
        if self.data:
            return teacher_of(checkpoint, self.task, device, self.data)
        bare = teacher_of(checkpoint, self.task, device)
        count = pool_of(self.recipe.batch, order.pool)
        with self.accelerator.main_process_first():
            pool = own_samples(order.out / "samples.pt", bare, checkpoint, self.task, self.recipe.seed, count)
        return teacher_of(checkpoint, self.task, device, pool)

    def quality(self) -> Callable[[Denoiser, FewStep], float]:
        """A student's metric on held-out noise, the mean over its budgets; what is better is lower."""
        metrics: dict[Task, dict[str, Metric]] = {}

        def measured(denoiser: Denoiser, sampler: FewStep) -> float:
            task = replace(self.task, guide=Guide(sampler.guidance))
            if task not in metrics:
                metrics[task] = {self.metric: make_metric(self.metric, self.context(task))}
            embedded = self.checkpoint.scale_as_input or sampler.embedded
            student = replace(self.checkpoint, network=denoiser.network, scale_as_input=embedded)
            return sum(self._value(student, sampler, nfe, metrics[task], task) for nfe in sampler.trained_for) / len(
                sampler.trained_for
            )

        return measured

    def _value(self, student: Checkpoint, sampler: FewStep, nfe: int, metrics: dict[str, Metric], task: Task) -> float:
        """The metric of one cell that no sweep has."""
        cell = Cell(
            student.name, "", self.order.method, sampler.plan(student.schedule, nfe), self.order.samples, HELD_OUT,
            task, Mode(), (self.metric,), student=True,
        )  # fmt: skip
        value = run_cell(cell, student, metrics, self.accelerator.device, student.batch)[0]["metrics"][0]
        return float(-value["value"] if value.get("better") == "higher" else value["value"])

    def context(self, task: Task) -> Context:
        """What metrics of students need."""
        order = self.order
        return Context(self.checkpoint, HELD_OUT, task, order.out / "cache", self.accelerator.device, order.reference)

    @property
    def drawn_calls(self) -> int:
        """What the teacher's own samples cost, where students learn from them."""
        return 0 if self.data else pool_of(self.recipe.batch, self.order.pool) * CALLS


def _named(checkpoint: Checkpoint) -> dict[str, str]:
    return {"name": checkpoint.name, "digest": checkpoint.digest}


def prepare(order: Order) -> Run:
    """Check an order against teacher, method, device and folder, writing nothing; raises UsageError."""
    method = make_method(order.method)
    checkpoint = load(order.teacher)
    begun = load(order.student) if order.student else checkpoint
    _check_shapes(checkpoint, begun)
    task = Task(prompts=read_prompts(order.prompts) if order.prompts else None)
    checkpoint.check(task)
    changed = {k: getattr(order, k) for k in ("steps", "batch", "lr") if getattr(order, k) is not None}
    _check(order)
    if order.precision not in PRECISIONS:
        raise UsageError(f"--precision {order.precision}: give {' or '.join(PRECISIONS)}")
    accelerator = Accelerator(cpu=find_device(order.device).type == "cpu", mixed_precision=PRECISIONS[order.precision])
    run = Run(
        order, method, replace(method.recipe, seed=order.seed, **changed), checkpoint, begun, task,
        order.metric or checkpoint.metrics[0], accelerator,
        images_in(order.data, checkpoint) if order.data else checkpoint.training,
    )  # fmt: skip
    if run.recipe.batch % accelerator.num_processes:
        raise UsageError(f"--batch {run.recipe.batch} cannot be shared by {accelerator.num_processes} processes")
    make_metric(run.metric, run.context(task)).check(order.samples)
    try:
        check(method, teacher_of(checkpoint, task, accelerator.device), run.recipe)
    except ValueError as error:
        raise UsageError(f"method {order.method!r}: {error}") from error
    _check_folder(order.out, run.definition)
    return run


def _check(order: Order) -> None:
    least = {"steps": 1, "batch": 1, "pool": 1, "samples": 2, "points": 1}
    for name, low in least.items():
        if (given := getattr(order, name)) is not None and given < low:
            raise UsageError(f"--{name} {given}: give at least {low}")
    if order.lr is not None and not 0 < order.lr < 1:
        raise UsageError(f"--lr {order.lr:g}: give a learning rate between 0 and 1")
    if not 0 <= order.seed < 2**31:
        raise UsageError(f"--seed {order.seed}: give a whole number from 0 to 2^31 - 1")


def _check_shapes(teacher: Checkpoint, student: Checkpoint) -> None:
    """Raises UsageError for a student that does not do what the teacher does."""
    for what in ("shape", "schedule", "predicts"):
        a, b = getattr(teacher, what), getattr(student, what)
        if a != b:
            raise UsageError(f"--student {student.name}: its {what} is {b}, and that of the teacher {teacher.name} {a}")
    if len(teacher.classes) != len(student.classes) or (teacher.text is None) != (student.text is None):
        raise UsageError(f"--student {student.name} is told other things than the teacher {teacher.name}")


def _check_folder(out: Path, definition: Mapping[str, Any]) -> None:
    """Raises UsageError for a folder that holds anything but this very run."""
    nearest_folder(out)
    if not out.exists() or not any(out.iterdir()):
        return
    try:
        there = json.loads((out / "run.json").read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"--out {out} is there already, and no unfinished distillation: give a new folder") from error
    for key, value in json.loads(json.dumps(definition)).items():
        if there.get(key) != value:
            raise UsageError(
                f"--out {out} is another distillation's, with {key} {there.get(key)!r} and not {value!r}: give a new "
                "folder, or what it was begun with"
            )


def distil(run: Run, on_step: Callable[[int, float], None]) -> Path:
    """Train, or go on, to the end; the student's folder.  Raises FloatingPointError when the loss is not finite."""
    out, main = run.order.out, run.accelerator.is_main_process
    if main:
        write_json(out / "run.json", run.definition)
    start = None
    if run.order.student:
        start = run.method.student(teacher_of(run.begun, run.task, run.accelerator.device))
    distillation = Distillation(run.method, run.teacher(), run.recipe, run.accelerator, start)
    distillation.progress.calls += run.drawn_calls
    memory = _resume(out / "state.pt", distillation)
    every = max(1, run.recipe.steps // run.order.points)

    def save(now: Distillation) -> None:
        state = {"distillation": now.state_dict(), "memory": max(memory, _peak(run.accelerator.device))}
        if main:
            write_atomically(out / "state.pt", lambda file: torch.save(state, file))
            _write_students(run, now, state["memory"])

    distillation.run(run.quality(), every, on_step, save)
    if main:
        _write_students(run, distillation, max(memory, _peak(run.accelerator.device)))
    return out


def _resume(path: Path, distillation: Distillation) -> float:
    """Put a distillation where its file left it, if there is one; the peak memory until then, bytes."""
    if not path.exists():
        return 0.0
    try:
        kept = torch.load(path, weights_only=True, map_location="cpu")  # where optimisers count steps
        distillation.load_state_dict(kept["distillation"])
    except (OSError, KeyError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UsageError(f"{path} is no state of this distillation: delete it to begin anew") from error
    return float(kept["memory"])


def _peak(device: torch.device) -> float:
    """The most bytes held so far: a GPU's allocations, or the process's resident set."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def _write_students(run: Run, now: Distillation, memory: float) -> None:
    """The bundles of what is there: the present stage's best student, and those of finished stages."""
    progress = now.progress
    for stage in progress.finished:
        budget = FewStep.from_dict(stage["sampler"]).trained_for[-1]
        folder = run.order.out / f"{budget}step"
        if not (folder / "card.json").exists():
            spent = {k: stage[k] for k in ("calls", "seconds", "steps")}
            _write(run, folder, stage["weights"], stage["sampler"], (stage["step"], stage["quality"]), spent, memory)
    best = progress.best_step, progress.best_quality
    spent = {"calls": progress.calls, "seconds": progress.seconds, "steps": now.step}
    _write(run, run.order.out, progress.best, now.sampler.to_dict(), best, spent, memory, progress.curve)


def _write(
    run: Run, folder: Path, weights: Weights, sampler: Mapping[str, Any], best: tuple[int, float],
    spent: Mapping[str, Any], memory: float, curve: list[tuple[int, float]] | None = None,
) -> None:  # fmt: skip
    """One student with its card; weights are stored in half precision."""
    about = environment(run.accelerator.device)
    training = dict(spent) | {
        "method": run.order.method,
        "teacher": run.checkpoint.name,
        "seconds": round(spent["seconds"], 1),
        "peak_memory_mib": round(memory / MIB, 1),
        "device": about["device"],
        "threads": about["threads"],
        "processes": run.accelerator.num_processes,
        "batch": run.recipe.batch,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    card = {"checkpoint": KIND, **run.definition, "sampler": sampler, "training": training} | {
        "best": {"step": best[0], "metric": run.metric, "held_out_quality": best[1]},
        "curve": curve or [],
        "made_with": {"versions": about["versions"], "commit": about["commit"]},
    }
    half = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    write_bundle(folder, half, card)
    write_readme(folder, f"{run.order.method} of {run.checkpoint.name}", run.order.command)
    if curve:
        write_curve(folder / "curve.png", curve, best, run.metric, run.order.method)
