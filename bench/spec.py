"""What is swept: a Sweep, written down by a person, becomes Cells, each with a key that is the same everywhere."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictInt,
    WithJsonSchema,
    model_validator,
)

import solvers
from bench.checkpoints import Checkpoint, Guide, Task
from bench.checkpoints.prompts import Prompts, read_prompts
from bench.distilled import shipped, shipped_for
from bench.files import sha256
from bench.metrics import METRICS, find_metric
from bench.mode import Backend, Layout, Mode, Precision
from bench.words import choices

FORMAT = 3  # of the key: raise it when the same fields come to mean another computation
ADAPTIVE_NFE = 50  # network calls, a guess that only estimates rest on
SMALL = 10_000_000  # parameters, below which a sweep of all solvers takes minutes
SOLVERS = (  # of the default sweep of a larger network: the families' usual choices at few calls
    "ddim", "heun", "lms", "pndm_s", "ipndm", "deis_tab3", "ghvb", "dpm_solver_2", "dpm_solver_3", "dpmpp_2m",
    "dpmpp_3m", "unipc", "dpmpp_2m_sde",
)  # fmt: skip
FLOW_SOLVERS = (  # of the default sweep of a flow, which starts where there is no signal
    "flow_euler", "flow_heun", "dpmpp_2s", "dpmpp_2m", "dpmpp_3m", "unipc", "dpmpp_2m_sde",
)  # fmt: skip
TIMES = ("t_start", "t_end")


def _rising(interval: tuple[float, float]) -> tuple[float, float]:
    if not interval[0] < interval[1]:
        raise ValueError("the interval's first noise level must lie below its second")
    return interval


def _different(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        raise ValueError("one of them twice gives the same samples twice; give each once")
    return values


def listed(value: object) -> object:
    """One value where several may stand."""
    return value if isinstance(value, list | tuple) else (value,)


def _switched(value: object) -> object:
    """true and false where a mapping may stand."""
    return {True: {}, False: None}[value] if isinstance(value, bool) else value


def _chosen(value: object) -> object:
    """Solvers one by one, where {name: {option: [values]}} is one for each choice of its options' values."""
    return [text for item in value for text in choices(item)] if isinstance(value, list | tuple) else value


def one_of(names: Iterable[str]) -> Any:
    """A word, for which editors suggest these names."""
    return Annotated[str, WithJsonSchema({"anyOf": [{"enum": list(names)}, {"type": "string"}]})]


def axis(one: Any) -> Any:
    """Different values of a type, at least one, written as one value or as a list."""
    several = Annotated[list[one], Field(min_length=1, json_schema_extra={"uniqueItems": True})]
    return Annotated[
        tuple[one, ...],
        Field(min_length=1),
        AfterValidator(_different),
        BeforeValidator(listed, json_schema_input_type=one | several),
    ]


Seed = Annotated[StrictInt, Field(ge=0, lt=2**64)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]  # for which true is not 1
Scale = Annotated[Number, Field(ge=-1e6, le=1e6)]  # of guidance; float32 ends not far above
Level = Annotated[Number, Field(ge=0)]  # of noise, sigma/alpha
SolverName = one_of([*solvers.METHODS.builtin, *shipped()])
Choice = bool | int | float | str  # of an option's value
Choices = dict[str, Choice | Annotated[list[Choice], Field(min_length=1)]]
Product = Annotated[dict[str, Choices | None], Field(min_length=1)]
Solvers = Annotated[list[SolverName | Product], Field(min_length=1)]  # as they are written


class Written(BaseModel):
    """What people write down; the sentence under a key is what editors show of it."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, field_title_generator=lambda name, _: name
    )


class Latency(Written):
    """How costs are measured: see bench.measure."""

    rounds: Annotated[StrictInt, Field(ge=5, le=10_000)] = 5
    """At least so many rounds."""
    threads: Annotated[StrictInt, Field(ge=1)] | None = None
    """CPU threads; null is torch's own choice."""
    max_batch: Annotated[StrictInt, Field(ge=1, le=2**20)] = 1
    """The batch of best throughput, at which all is timed too, is looked for up to so many samples."""
    seconds: Annotated[Number, Field(gt=0, le=3600)] = 0.1
    """More rounds while they end within so many seconds a cell."""


class Window(Written):
    """The quality that a cell must show for its speed to count."""

    metric: str
    """The number looked at, such as fid."""
    low: Number
    """Its lowest value, included."""
    high: Number
    """Its highest value, included."""

    @model_validator(mode="after")
    def _ordered(self) -> "Window":
        if not self.low < self.high:
            raise ValueError("low must lie below high")
        return self


class Settings(Written):
    """All of a sweep but its checkpoint; every key has a default, and the defaults are the default sweep."""

    solvers: (
        Annotated[tuple[str, ...], Field(min_length=1), BeforeValidator(_chosen, json_schema_input_type=Solvers)] | None
    ) = None
    """Solvers and students: name, name(option=value), or name: {option: [value, value]} for one solver each."""
    nfe: tuple[Annotated[StrictInt, Field(ge=1, le=10_000)], ...] = Field((1, 2, 4, 5, 6, 8, 10), min_length=1)
    """Budgets of network calls."""
    samples: Annotated[StrictInt, Field(ge=2, le=10**9)] = 2000
    """Samples a cell."""
    seed: axis(Seed) = (0,)
    """Seeds of the noise that cells share, one or several."""
    guidance: axis(Scale) = (1.0,)
    """Scales of guidance, one or several."""
    guidance_interval: Annotated[tuple[Level, Level], AfterValidator(_rising)] | None = None
    """The noise levels, in sigma/alpha, between which guidance is on: [low, high]."""
    cfg_plus_plus: bool = False
    """Guidance by CFG++."""
    classes: tuple[Annotated[StrictInt, Field(ge=0)], ...] | None = Field(None, min_length=1)
    """The classes to sample; all, if none are given."""
    prompts: str | None = None
    """A text file with one prompt a line."""
    negative_prompt: str = ""
    """What guidance leads away from."""
    precision: axis(Precision) = ("fp32",)
    """The network's arithmetic, one or several."""
    layout: axis(Layout) = ("contiguous",)
    """The memory layout of images, one or several."""
    backend: axis(Backend) = ("eager",)
    """What runs the network, one or several."""
    metrics: Annotated[tuple[one_of(METRICS.builtin), ...], Field(min_length=1)] | None = None
    """What is computed of the samples: name or name(option=value); the checkpoint's own, if none are given."""
    reference: Annotated[tuple[str, ...], BeforeValidator(listed, json_schema_input_type=str | list[str])] = ()
    """What samples are compared with: folders, parquet files, statistics; the checkpoint's own data, if none."""
    inception_weights: str | None = None
    """The file of Inception's weights, or the folder with the published files."""
    latency: Annotated[Latency | None, BeforeValidator(_switched, json_schema_input_type=Latency | bool | None)] = (
        Latency()
    )
    """How costs are measured; true is as usual, false not at all."""
    quality: Window | None = None
    """The window of quality in which a speed counts."""
    tuned: str = "tuned"
    """Where `fewstep tune` put what solvers learned."""


class Sweep(Settings):
    """The definition of a sweep of one checkpoint."""

    checkpoint: str = "digits"

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
        return [Mode(*ways) for ways in product(self.precision, self.layout, self.backend)]

    def solvers_on(self, checkpoint: Checkpoint) -> tuple[str, ...]:
        """Those asked for, or those of the default sweep, with the checkpoint's shipped students.

        Of a small network these are all that learn nothing; a large one's, and a flow's, are the usual ones.
        """
        return self.solvers or (_usual(checkpoint) + shipped_for(checkpoint))

    def metrics_on(self, checkpoint: Checkpoint) -> tuple[str, ...]:
        """Those asked for, or the checkpoint's own, which of some classes alone are those that make sense of them."""
        usual = [m for m in checkpoint.metrics if not self.classes or find_metric(m)[0].of_ode]
        return tuple(dict.fromkeys(self.metrics or usual))

    def definition(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """The sweep with nothing left to defaults, as it is written into its results folder."""
        usual = {"solvers": list(self.solvers_on(checkpoint)), "metrics": list(self.metrics_on(checkpoint))}
        resolved = {"checkpoint": checkpoint.name} | self.model_dump(mode="json", exclude={"checkpoint"}) | usual
        prompts = {"prompts": self.texts.to_dict()} if self.texts else {}
        return resolved | {"digest": checkpoint.digest} | prompts


def _usual(checkpoint: Checkpoint) -> tuple[str, ...]:
    if isinstance(checkpoint.schedule, solvers.RectifiedFlow):
        return FLOW_SOLVERS
    if sum(p.numel() for p in checkpoint.network.parameters()) >= SMALL:
        return SOLVERS
    return tuple(name for name in solvers.METHODS.builtin if not solvers.method(name).learns)


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
