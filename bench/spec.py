"""What is swept: a Sweep, written down by a person, becomes Cells, each with a key that is the same everywhere."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

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
from bench.checkpoints import Checkpoint, Guide
from bench.errors import UsageError
from bench.files import sha256
from bench.metrics import find_metric
from bench.words import parse

FORMAT = 3  # of the key: raise it when the same fields come to mean another computation
ADAPTIVE_NFE = 50  # network calls, a guess that only estimates rest on
SOLVERS = (  # of the default sweep: the families' usual choices at few calls
    "ddim", "heun", "lms", "pndm_s", "ipndm", "deis_tab3", "ghvb", "dpm_solver_2", "dpm_solver_3", "dpmpp_2m",
    "dpmpp_3m", "unipc", "dpmpp_2m_sde",
)  # fmt: skip
TIMES = ("t_start", "t_end")
SUCH_AS = {"latency": "{rounds: 9}, or true or false", "quality": "{metric: fid, low: 2.0, high: 2.2}"}


def _rising(interval: tuple[float, float]) -> tuple[float, float]:
    if not interval[0] < interval[1]:
        raise ValueError("the interval's first noise level must lie below its second")
    return interval


def _different(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("one seed twice gives the same samples twice; give each once")
    return seeds


def _listed(value: object) -> object:
    """One value where several may stand."""
    return value if isinstance(value, list | tuple) else (value,)


def _switched(value: object) -> object:
    """true and false where a mapping may stand."""
    return {True: {}, False: None}[value] if isinstance(value, bool) else value


Seed = Annotated[StrictInt, Field(ge=0, lt=2**64)]
Level = Annotated[float, Field(ge=0, allow_inf_nan=False)]  # of noise, sigma/alpha


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
    solvers: tuple[str, ...] = Field(SOLVERS, min_length=1)
    nfe: tuple[Annotated[StrictInt, Field(ge=1, le=10_000)], ...] = Field((5, 6, 8, 10, 12, 15, 20), min_length=1)
    samples: Annotated[StrictInt, Field(ge=2)] = 2000
    seed: Annotated[tuple[Seed, ...], BeforeValidator(_listed), AfterValidator(_different), Field(min_length=1)] = (0,)
    guidance: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    guidance_interval: Annotated[tuple[Level, Level], AfterValidator(_rising)] | None = None
    cfg_plus_plus: bool = False
    classes: tuple[Annotated[StrictInt, Field(ge=0)], ...] | None = Field(None, min_length=1)
    dtype: Literal["float32", "float64"] = "float32"
    metrics: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    reference: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()
    inception_weights: str | None = None
    latency: Annotated[Latency | None, BeforeValidator(_switched)] = Latency()
    quality: Window | None = None
    tuned: str = "tuned"

    @property
    def guide(self) -> Guide:
        return Guide(self.guidance, self.guidance_interval, self.cfg_plus_plus)

    def metrics_on(self, checkpoint: Checkpoint) -> tuple[str, ...]:
        """Those asked for, or the checkpoint's own, which of some classes alone are those that make sense of them."""
        usual = [m for m in checkpoint.metrics if not self.classes or find_metric(m)[0].of_ode]
        return tuple(dict.fromkeys(self.metrics or usual))

    def definition(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """The sweep with nothing left to defaults, as it is written into its results folder."""
        resolved = self.model_dump(mode="json") | {"metrics": list(self.metrics_on(checkpoint))}
        return resolved | {"checkpoint": checkpoint.name, "digest": checkpoint.digest}


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
    """One sampler at one budget on one checkpoint: everything that decides its samples and its numbers."""

    checkpoint: str
    digest: str
    solver: str
    plan: solvers.Plan | solvers.Procedure
    samples: int
    seed: int
    guide: Guide
    dtype: str
    metrics: tuple[str, ...]
    classes: tuple[int, ...] | None = None
    against: tuple[str, ...] = ()  # the metrics' families and references

    @property
    def label(self) -> str:
        return f"{self.checkpoint} {self.solver} nfe={self.nfe or 'adaptive'}"

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
            "guidance": dataclasses.asdict(self.guide),
            "dtype": self.dtype,
            "metrics": sorted(self.metrics),
        } | ({"classes": sorted(self.classes)} if self.classes else {})
        about |= {"against": sorted(self.against)} if self.against else {}
        return sha256(json.dumps(about, sort_keys=True).encode())

    def to_dict(self) -> dict[str, Any]:
        """What the cell's record says of it."""
        return {
            "checkpoint": self.checkpoint,
            "digest": self.digest,
            "solver": self.solver,
            "options": dict(self.plan.options),
            "order": self.plan.order,
            "nfe": self.nfe,
            "times": self.plan.times,
            "samples": self.samples,
            "seed": self.seed,
            "guidance": self.guide.scale,
            "guidance_interval": self.guide.interval,
            "cfg_plus_plus": self.guide.plus_plus,
            "dtype": self.dtype,
            "metrics": self.metrics,
            "classes": self.classes,
            "learned_from": self.plan.learned_from.to_dict() if self.plan.learned_from else None,
        }


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.8e}"
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list) else value


def cells(sweep: Sweep, checkpoint: Checkpoint, against: tuple[str, ...] = ()) -> tuple[list[Cell], list[str]]:
    """The sweep's cells, and one line for each budget that a solver cannot spend.

    `against` is what the metrics' numbers compare within: their families and references.

    Raises UsageError for a solver that can spend none of the budgets, or options it cannot take.
    """
    metrics = sweep.metrics_on(checkpoint)
    for metric in metrics:
        of_ode = find_metric(metric)[0].of_ode
        if sweep.classes and not of_ode:
            raise UsageError(
                f"classes: {metric} compares with all of them; metrics that can be taken of some: trajectory"
            )
    checkpoint.check_classes(sweep.classes or ())
    found: dict[str, Cell] = {}
    skipped: list[str] = []
    for text in sweep.solvers:
        plans, unspendable = _plans(text, sweep, checkpoint)
        skipped += unspendable
        for plan in plans:
            _check(text, plan, sweep, metrics)
            for seed in sweep.seed:
                cell = Cell(
                    checkpoint.name, checkpoint.digest, text, plan, sweep.samples, seed, sweep.guide, sweep.dtype,
                    metrics, sweep.classes, against,
                )  # fmt: skip
                found.setdefault(cell.key, cell)
    return list(found.values()), skipped


def _check(text: str, plan: solvers.Plan | solvers.Procedure, sweep: Sweep, metrics: tuple[str, ...]) -> None:
    """Raises UsageError for a plan that CFG++ is not defined for, or that none of the metrics applies to."""
    one_a_step = isinstance(plan, solvers.Plan) and plan.call_times in (plan.times[:-1], plan.times[1:-1])
    if sweep.cfg_plus_plus and not one_a_step:
        raise UsageError(f"solver {text!r}: cfg_plus_plus is defined for one call at the start of each step")
    if (plan.draws or sweep.cfg_plus_plus) and all(find_metric(metric)[0].of_ode for metric in metrics):
        raise UsageError(f"solver {text!r} follows no ODE, which {', '.join(metrics)} is about: add another metric")


def _plans(text: str, sweep: Sweep, checkpoint: Checkpoint) -> tuple[list[solvers.Plan | solvers.Procedure], list[str]]:
    """The plans of one solver at every budget it can spend, and why not at the others; an adaptive one has one."""
    name, options = parse("solver", text)
    method = solvers.method(name)
    if method.learns:
        folder = Path(sweep.tuned) / checkpoint.name / method.name
        options = {"guidance": sweep.guidance, "tuned": str(folder)} | options
    where = {k: options.pop(k) for k in ("grid", *TIMES) if k in options}
    if not isinstance(where.get("grid", ""), str) or not all(isinstance(where.get(k, 0.0), int | float) for k in TIMES):
        raise UsageError(f"solver {text!r}: grid is a word; t_start and t_end are numbers")
    plans, skipped = [], []
    for nfe in [None] if method.adaptive else dict.fromkeys(sweep.nfe):
        try:
            plans.append(method.build(checkpoint.schedule, nfe, **where, options=options))
        except solvers.BudgetError as error:
            skipped.append(str(error))
        except (ValueError, TypeError) as error:
            raise UsageError(f"solver {text!r}: {error}") from error
    if not plans:
        raise UsageError(skipped[0])
    for plan in plans:
        learned = plan.learned_from
        if learned and learned.digest != checkpoint.digest:
            raise UsageError(
                f"solver {text!r}: {options['tuned']} was learned from checkpoint {learned.digest[:12]}, not from "
                f"{checkpoint.name} ({checkpoint.digest[:12]}): run `fewstep tune {name}` for it"
            )
    return plans, skipped
