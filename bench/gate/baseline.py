"""The baseline: one JSON file that the gate needs nothing beside, written so that its diff can be read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StrictInt, ValidationError

from bench.errors import UsageError
from bench.files import read_small, write_text

MAKE = "`fewstep gate SWEEP.yaml --baseline FILE --update --reason TEXT` writes one"
WIDTH = 120  # of a line that holds a whole object

Kind = TypeVar("Kind", bound="Frozen")
Ratios = tuple[FiniteFloat, ...]  # of one session, a number a round


class Frozen(BaseModel):
    """What is written in a baseline, key by key."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Settings(Frozen):
    """For people to edit; an update keeps them.

    `threads` of the CPU all is run on; `window`, how far a number may move from its baseline, in standard errors;
    `slower`, the factor that a speed ratio may worsen by even where its noise is smaller.
    """

    threads: Annotated[StrictInt, Field(ge=1)] = 1
    window: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    slower: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 1.05


class Expected(Frozen):
    """A number as it was, and what it may be compared within."""

    value: FiniteFloat
    se: FiniteFloat
    family: str
    reference: dict[str, Any]


class Past(Frozen):
    """A cell as it was: `digest` of its network, calls a sample by budget and by count, its plan, numbers, and speed.

    `ratios` are of each session, empty for a sampler whose steps depend on the sample.
    """

    digest: str
    nfe: int | None
    counted_nfe: int | FiniteFloat
    forwards: int | FiniteFloat
    plan: dict[str, Any]
    values: dict[str, Expected]
    ratios: tuple[Ratios, ...] = ()


class PastSweep(Frozen):
    """A sweep as its file defined it, solvers and metrics named, and its cells by their labels."""

    definition: dict[str, Any]
    cells: dict[str, Past]


class Recording(Frozen):
    """One run of an official implementation in float64, on the exact network of the checkpoint gmm.

    `source` says what made it.  `solver` on `times` of `schedule` is the plan that stands for it; x_init, x_final
    (B, *shape) and noise, one (B, *shape) a draw, are as it had them.  `error` is the largest of our plan's, at the
    time of the baseline.
    """

    source: str
    solver: str
    schedule: dict[str, Any]
    times: tuple[FiniteFloat, ...]
    x_init: list[Any]
    x_final: list[Any]
    noise: list[Any] = []
    error: FiniteFloat | None = None


class Change(Frozen):
    """An update of the baseline: what it changed, and why."""

    when: str
    reason: str
    commit: str | None
    device: str
    changed: tuple[str, ...]


class Baseline(Frozen):
    """Everything that the gate compares with; `history` of its updates, newest last."""

    format: Literal[1] = 1
    settings: Settings = Settings()
    sweeps: dict[str, PastSweep] = {}
    recordings: dict[str, Recording] = {}
    history: tuple[Change, ...] = ()

    @property
    def device(self) -> str:
        """What it was recorded on."""
        return self.history[-1].device


def read_baseline(path: Path) -> Baseline:
    """The baseline in a file; raises UsageError where there is none."""
    found = _valid(Baseline, path, _read_object(path, MAKE))
    if not found.history:
        raise UsageError(f"{path} is no baseline: its history is empty; {MAKE}")
    return found


def read_recordings(path: Path) -> dict[str, Recording]:
    """Recordings by name, from a JSON file of them; raises UsageError."""
    found = _read_object(path, "give a JSON file of recordings by name")
    return {name: _valid(Recording, path, recording) for name, recording in found.items()}


def write_baseline(path: Path, baseline: Baseline) -> None:
    """Raises UsageError where the disk refuses."""
    try:
        write_text(path, _written(baseline.model_dump(mode="json"), "") + "\n")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error


def _valid(kind: type[Kind], path: Path, data: Any) -> Kind:
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(f"{path}: {where}: {first['msg']}, not {first['input']!r:.80}") from error


def _read_object(path: Path, advice: str) -> dict[str, Any]:
    try:
        found = json.loads(read_small(path))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; {advice}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}; {advice}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path} holds no JSON object; {advice}")
    return found


def _written(value: Any, margin: str) -> str:
    """JSON, in which numbers between brackets and what is short stand on one line each."""
    line = json.dumps(value, allow_nan=False, ensure_ascii=False)
    plain = isinstance(value, list) and not any(isinstance(item, list | dict) for item in value)
    if len(margin + line) <= WIDTH or plain or not isinstance(value, list | dict):
        return line
    deeper = margin + " "
    if isinstance(value, list):
        return "[\n" + ",\n".join(deeper + _written(item, deeper) for item in value) + f"\n{margin}]"
    items: Mapping[str, Any] = value
    rows = (f"{deeper}{json.dumps(k, ensure_ascii=False)}: {_written(v, deeper)}" for k, v in items.items())
    return "{\n" + ",\n".join(rows) + f"\n{margin}}}"
