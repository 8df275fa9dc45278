"""What is swept: a Sweep, written down by a person, becomes Cells, each with a key that is the same everywhere."""

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError

import solvers
from bench.checkpoints import Checkpoint
from bench.errors import UsageError
from bench.files import sha256
from bench.metrics import METRICS
from solvers.tracer import build

FORMAT = 2  # of the key: raise it when the same fields come to mean another computation
TIMES = ("t_start", "t_end")
COMMA = re.compile(r",(?![^()]*\))")  # between the items of a list, not inside an item's parentheses


class Sweep(BaseModel):
    """The definition of a sweep; every field has a default, and the defaults are the default sweep."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: str = "digits"
    solvers: tuple[str, ...] = Field(default_factory=lambda: tuple(solvers.names()), min_length=1)
    nfe: tuple[Annotated[StrictInt, Field(ge=1, le=10_000)], ...] = Field((5, 6, 8, 10, 12, 15, 20), min_length=1)
    samples: Annotated[StrictInt, Field(ge=2)] = 2000
    seed: Annotated[StrictInt, Field(ge=0, lt=2**64)] = 0
    guidance: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    dtype: Literal["float32", "float64"] = "float32"
    metrics: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    latency: bool = True

    def definition(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """The sweep with nothing left to defaults, as it is written into its results folder."""
        resolved = self.model_dump(mode="json") | {"metrics": list(self.metrics or checkpoint.metrics)}
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
        key = str(first["loc"][0])
        where = f"{path}, line {lines[key]}: " if path and key in lines and key not in overrides else ""
        if first["type"] == "extra_forbidden":
            raise UsageError(where + str(solvers.did_you_mean("key", key, list(Sweep.model_fields)))) from None
        raise UsageError(f"{where}{key} = {first['input']!r}: {first['msg']}") from None


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


def split_list(text: str) -> list[str]:
    """The items of a comma-separated list; commas inside parentheses belong to the item."""
    return [item.strip() for item in COMMA.split(text) if item.strip()]


def parse_solver(text: str) -> tuple[str, dict[str, solvers.Option]]:
    """Name and options of `name` or `name(option=value, ...)`; raises UsageError."""
    name, bracket, rest = text.strip().partition("(")
    if not bracket:
        return name, {}
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args or rest[-1:] != ")":
            raise ValueError(text)
        options = {str(k.arg): _literal(k.value) for k in call.keywords if k.arg}
        if len(options) < len(call.keywords):  # **options, or one of them twice
            raise ValueError(text)
        return name.strip(), options
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"solver {text!r} is not of the form name or name(option=value, ...)") from error


def _literal(node: ast.expr) -> solvers.Option:
    if isinstance(node, ast.Name):  # words need no quotes, and YAML's booleans are words
        return {"true": True, "false": False}.get(node.id.lower(), node.id)
    value = ast.literal_eval(node)
    if not isinstance(value, bool | int | float | str):
        raise ValueError(value)
    return value


@dataclass(frozen=True)
class Cell:
    """One sampler at one budget on one checkpoint: everything that decides its samples and its numbers."""

    checkpoint: str
    digest: str
    solver: str
    plan: solvers.Plan
    samples: int
    seed: int
    guidance: float
    dtype: str
    metrics: tuple[str, ...]

    @property
    def label(self) -> str:
        return f"{self.checkpoint} {self.solver} nfe={self.plan.nfe}"

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
            "guidance": self.guidance,
            "dtype": self.dtype,
            "metrics": sorted(self.metrics),
        }
        return sha256(json.dumps(about, sort_keys=True).encode())

    def to_dict(self) -> dict[str, Any]:
        """What the cell's record says of it."""
        return {
            "checkpoint": self.checkpoint,
            "digest": self.digest,
            "solver": self.solver,
            "options": dict(self.plan.options),
            "order": self.plan.order,
            "nfe": self.plan.nfe,
            "times": self.plan.times,
            "samples": self.samples,
            "seed": self.seed,
            "guidance": self.guidance,
            "dtype": self.dtype,
            "metrics": self.metrics,
        }


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.8e}"
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list) else value


def cells(sweep: Sweep, checkpoint: Checkpoint) -> tuple[list[Cell], list[str]]:
    """The sweep's cells, and one line for each budget that a solver cannot spend.

    Raises UsageError for a solver that can spend none of the budgets, or options it cannot take.
    """
    metrics = tuple(dict.fromkeys(sweep.metrics or checkpoint.metrics))
    for metric in metrics:
        METRICS.get(metric)
    found: dict[str, Cell] = {}
    skipped: list[str] = []
    for text in sweep.solvers:
        plans, unspendable = _plans(text, sweep, checkpoint)
        skipped += unspendable
        for plan in plans:
            cell = Cell(
                checkpoint.name, checkpoint.digest, text, plan, sweep.samples, sweep.seed, sweep.guidance, sweep.dtype,
                metrics,
            )  # fmt: skip
            found.setdefault(cell.key, cell)
    return list(found.values()), skipped


def _plans(text: str, sweep: Sweep, checkpoint: Checkpoint) -> tuple[list[solvers.Plan], list[str]]:
    """The plans of one solver at every budget it can spend, and why not at the others."""
    name, options = parse_solver(text)
    method = solvers.method(name)
    where = {k: options.pop(k) for k in ("grid", *TIMES) if k in options}
    if not isinstance(where.get("grid", ""), str) or not all(isinstance(where.get(k, 0.0), int | float) for k in TIMES):
        raise UsageError(f"solver {text!r}: grid is a word; t_start and t_end are numbers")
    plans, skipped = [], []
    for nfe in dict.fromkeys(sweep.nfe):
        try:
            plans.append(build(method, checkpoint.schedule, nfe, **where, options=options))
        except solvers.BudgetError as error:
            skipped.append(str(error))
        except (ValueError, TypeError) as error:
            raise UsageError(f"solver {text!r}: {error}") from error
    if not plans:
        raise UsageError(skipped[0])
    return plans, skipped
