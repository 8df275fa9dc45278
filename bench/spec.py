"""What is swept: a Sweep, written down by a person, becomes Cells, each with a key that is the same everywhere."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictInt,
    ValidationError,
    model_validator,
)

import solvers
from bench.checkpoints import Checkpoint, Guide, Task
from bench.checkpoints.prompts import Prompts, read_prompts
from bench.distilled import shipped_for
from bench.errors import UsageError
from bench.files import sha256
from bench.metrics import find_metric
from bench.mode import Engine, Layout, Mode, Precision

FORMAT = 3  # of the key: raise it when the same fields come to mean another computation
ADAPTIVE_NFE = 50  # network calls, a guess that only estimates rest on
SOLVERS = (  # of the default sweep: the families' usual choices at few calls
    "ddim", "heun", "lms", "pndm_s", "ipndm", "deis_tab3", "ghvb", "dpm_solver_2", "dpm_solver_3", "dpmpp_2m",
    "dpmpp_3m", "unipc", "dpmpp_2m_sde",
)  # fmt: skip
FLOW_SOLVERS = (  # of the default sweep of a flow, which starts where there is no signal
    "flow_euler", "flow_heun", "dpmpp_2s", "dpmpp_2m", "dpmpp_3m", "unipc", "dpmpp_2m_sde",
)  # fmt: skip
TIMES = ("t_start", "t_end")
SUCH_AS = {"latency": "{rounds: 9}, or true or false", "quality": "{metric: fid, low: 2.0, high: 2.2}"}


def _rising(interval: tuple[float, float]) -> tuple[float, float]:
    if not interval[0] < interval[1]:
        raise ValueError("the interval's first noise level must lie below its second")
    return interval


def _different(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        raise ValueError("one of them twice gives the same samples twice; give each once")
    return values


def _listed(value: object) -> object:
    """One value where several may stand."""
    return value if isinstance(value, list | tuple) else (value,)


def _switched(value: object) -> object:
    """true and false where a mapping may stand."""
    return {True: {}, False: None}[value] if isinstance(value, bool) else value


Seed = Annotated[StrictInt, Field(ge=0, lt=2**64)]
Scale = Annotated[float, Field(allow_inf_nan=False)]
Level = Annotated[float, Field(ge=0, allow_inf_nan=False)]  # of noise, sigma/alpha
AXIS = (
    BeforeValidator(_listed),
    AfterValidator(_different),
    Field(min_length=1),
)  # one value, or several to sweep over


class Latency(BaseModel):
    """How costs are measured: see bench.measure.

    At least so many `rounds`, and more while they end within `seconds` a cell, on so many CPU `threads` (None: torch's
    own choice); throughput is looked for up to `max_batch` samples.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rounds: Annotated[StrictInt, Field(ge=5)] = 5
    threads: Annotated[StrictInt, Field(ge=1)] | None = None
    max_batch: Annotated[StrictInt, Field(ge=1)] = 4096
    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.25


class Window(BaseModel):
    """The quality that a cell's `metric` must show for its speed to count: between `low` and `high`, both included."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    low: Annotated[float, Field(allow_inf_nan=False)]
    high: Annotated[float, Field(allow_inf_nan=False)]

    @model_validator(mode="after")
    def _ordered(self) -> "Window":
        if not self.low < self.high:
            raise ValueError("low must lie below high")
        return self


class Sweep(BaseModel):
    """The definition of a sweep; every field has a default, and the defaults are the default sweep."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: str = "digits"
    solvers: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    nfe: tuple[Annotated[StrictInt, Field(ge=1, le=10_000)], ...] = Field(
        (1, 2, 4, 5, 6, 8, 10, 12, 15, 20), min_length=1
    )
    samples: Annotated[StrictInt, Field(ge=2)] = 2000
    seed: Annotated[tuple[Seed, ...], *AXIS] = (0,)
    guidance: Annotated[tuple[Scale, ...], *AXIS] = (1.0,)
    guidance_interval: Annotated[tuple[Level, Level], AfterValidator(_rising)] | None = None
    cfg_plus_plus: bool = False
    classes: tuple[Annotated[StrictInt, Field(ge=0)], ...] | None = Field(None, min_length=1)
    prompts: str | None = None
    negative_prompt: str = ""
    precision: Annotated[tuple[Precision, ...], *AXIS] = ("fp32",)
    layout: Annotated[tuple[Layout, ...], *AXIS] = ("contiguous",)
    engine: Annotated[tuple[Engine, ...], *AXIS] = ("eager",)
    metrics: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    reference: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()
    inception_weights: str | None = None
    latency: Annotated[Latency | None, BeforeValidator(_switched)] = Latency()
    quality: Window | None = None
    tuned: str = "tuned"

    @cached_property
    def texts(self) -> Prompts | None:
        """The prompts themselves; raises UsageError when they cannot be read."""
        return read_prompts(Path(self.prompts), self.negative_prompt) if self.prompts else None

    @property
    def tasks(self) -> list[Task]:
        """What the checkpoint is asked for, one for each scale of guidance."""
        guides = [Guide(scale, self.guidance_interval, self.cfg_plus_plus) for scale in self.guidance]
        return [Task(guide, self.classes, self.texts) for guide in guides]

    @property
    def modes(self) -> list[Mode]:
        """The ways in which the network is run."""
        return [Mode(*ways) for ways in product(self.precision, self.layout, self.engine)]

    def solvers_on(self, checkpoint: Checkpoint) -> tuple[str, ...]:
        """Those asked for, or those of the default sweep for the checkpoint's schedule, with its shipped students."""
        flow = isinstance(checkpoint.schedule, solvers.RectifiedFlow)
        return self.solvers or ((FLOW_SOLVERS if flow else SOLVERS) + shipped_for(checkpoint))

    def metrics_on(self, checkpoint: Checkpoint) -> tuple[str, ...]:
        """Those asked for, or the checkpoint's own, which of some classes alone are those that make sense of them."""
        usual = [m for m in checkpoint.metrics if not self.classes or find_metric(m)[0].of_ode]
        return tuple(dict.fromkeys(self.metrics or usual))

    def definition(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """The sweep with nothing left to defaults, as it is written into its results folder."""
        usual = {"solvers": list(self.solvers_on(checkpoint)), "metrics": list(self.metrics_on(checkpoint))}
        resolved = self.model_dump(mode="json") | usual
        prompts = {"prompts": self.texts.to_dict()} if self.texts else {}
        return resolved | {"checkpoint": checkpoint.name, "digest": checkpoint.digest} | prompts


def read_sweep(path: Path | None, overrides: Mapping[str, Any]) -> Sweep:
    """The sweep of a YAML file (or the default one) with `overrides` in place of its fields.

    Raises UsageError naming the key and, for a file, the line.
    """
    data, lines = _read_yaml(path) if path else ({}, {})
    try:
        return Sweep(**(data | dict(overrides)))
    except ValidationError as error:
        first = error.errors()[0]
        key, *inner = [part for part in first["loc"] if isinstance(part, str)]
        where = f"{path}, line {lines[key]}: " if path and key in lines and key not in overrides else ""
        if first["type"] == "extra_forbidden":
            known = {"latency": Latency, "quality": Window}[key] if inner else Sweep
            unknown = solvers.did_you_mean("key", (inner or [key])[0], list(known.model_fields))
            raise UsageError(where + f"{key}: " * bool(inner) + str(unknown)) from None
        raise UsageError(where + _refusal(".".join([key, *inner]), first)) from None


def _refusal(key: str, error: Mapping[str, Any]) -> str:
    """What is wrong with a key's value, in pydantic's words where they serve."""
    if error["type"] == "missing" and isinstance(place := error["loc"][-1], int):
        return f"{key} = {error['input']!r}: value {place + 1} is missing"
    if error["type"] == "missing":
        return f"{key} is missing: {error['input']!r}"
    if error["type"] == "model_type":
        return f"{key} = {error['input']!r}: give a mapping such as {SUCH_AS[key]}"
    if error["type"] == "too_short":
        return f"{key} = {error['input']!r}: give one or more"
    return f"{key} = {error['input']!r}: {error['msg'].removeprefix('Value error, ')}"


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The mapping in a YAML file, and the line of each of its keys."""
    try:
        text = path.read_text()
        root, data = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
    except (OSError, ValueError, RecursionError) as error:  # bytes that are no text, dates that are none, [[[[…
        raise UsageError(f"cannot read {path}: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"{path}{line}: not YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(root, yaml.MappingNode):
        raise UsageError(f"{path} must hold a mapping with keys such as checkpoint, solvers, nfe")
    lines = {str(key.value): key.start_mark.line + 1 for key, _ in root.value}
    return {str(k): v for k, v in data.items()}, lines


@dataclass(frozen=True)
class Cell:
    """One sampler at one budget on one checkpoint: everything that decides its samples and its numbers.

    `digest` is that of the network which makes the samples: of a student, its own, whose `training` is known where it
    was made here.  `axes` says in words what sets the cell apart from others of its solver and budget in its sweep.
    """

    checkpoint: str
    digest: str
    solver: str
    plan: solvers.Plan | solvers.Procedure
    samples: int
    seed: int
    task: Task
    mode: Mode
    metrics: tuple[str, ...]
    against: tuple[str, ...] = ()  # the metrics' families and references
    student: bool = False
    axes: str = ""
    training: Mapping[str, Any] | None = None

    @property
    def series(self) -> str:
        """What its line in a figure is called."""
        return f"{self.solver} {self.axes}".strip()

    @property
    def label(self) -> str:
        return f"{self.checkpoint} {self.series} nfe={self.nfe or 'adaptive'}"

    @property
    def nfe(self) -> int | None:
        """The budget; None where the calls depend on the samples."""
        return self.plan.nfe

    @property
    def expected_nfe(self) -> int:
        """For progress bars and estimates, which need a number for an adaptive solver too."""
        return self.nfe or ADAPTIVE_NFE

    @cached_property
    def key(self) -> str:
        """SHA-256 of what the cell computes: no order, batch size, device or name in it.

        Numbers of the plan enter with 9 digits, so that the last bits of another machine's libm do not make another
        cell, while a solver whose coefficients changed does.
        """
        about = {
            "format": FORMAT,
            "digest": self.digest,
            "plan": _rounded(json.loads(self.plan.to_json())),
            "samples": self.samples,
            "seed": self.seed,
            "guidance": dataclasses.asdict(self.task.guide),
            "metrics": sorted(self.metrics),
        } | self.mode.identity()
        about |= {"classes": sorted(self.task.classes)} if self.task.classes else {}
        about |= {"prompts": self.task.prompts.digest} if self.task.prompts else {}
        about |= {"against": sorted(self.against)} if self.against else {}
        return sha256(json.dumps(about, sort_keys=True).encode())

    def to_dict(self) -> dict[str, Any]:
        """What the cell's record says of it."""
        return {
            "checkpoint": self.checkpoint,
            "digest": self.digest,
            "solver": self.solver,
            "series": self.series,
            "student": self.student,
            "training": self.training,
            "options": dict(self.plan.options),
            "order": self.plan.order,
            "nfe": self.nfe,
            "times": self.plan.times,
            "samples": self.samples,
            "seed": self.seed,
            "guidance": self.task.guide.scale,
            "guidance_interval": self.task.guide.interval,
            "cfg_plus_plus": self.task.guide.plus_plus,
            "metrics": self.metrics,
            "classes": self.task.classes,
            "prompts": self.task.prompts.to_dict() if self.task.prompts else None,
            "learned_from": self.plan.learned_from.to_dict() if self.plan.learned_from else None,
        } | self.mode.to_dict()


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.8e}"
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list) else value
