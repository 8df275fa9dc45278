"""What a method learned from a checkpoint: a small file for each budget and guidance scale, with what it cost.

<folder>/nfe10-cfg1.json          one thing learned, for 10 calls at guidance scale 1; any-cfg1.json serves any budget
         nfe10-cfg1.safetensors   its arrays, if it has any; the JSON holds their SHA-256
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from solvers.schedule import Schedule, schedule_from_dict

FORMAT = 1


class LearnedError(ValueError):
    """Something learned that cannot be used here; the message says what it was learned for."""


@dataclass(frozen=True)
class Cost:
    """Network evaluations of single samples: plain ones, and those with a derivative along with them or backwards."""

    forwards: int = 0
    tangents: int = 0
    backwards: int = 0

    @property
    def calls(self) -> int:
        """In units of one evaluation of one sample: a tangent costs one more, a backward pass two."""
        return self.forwards + self.tangents + 2 * self.backwards

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.forwards + other.forwards, self.tangents + other.tangents, self.backwards + other.backwards
        )  # fmt: skip


@dataclass(frozen=True)
class Provenance:
    """Where a plan's numbers were learned: the checkpoint's digest, what for, and at what cost in calls.

    `base` is the solver it started from, as one would write it; `objective` what was made small; `curve` how it fell,
    (calls spent, error then); `nfe` is None for what serves any budget; `sha256` is the file's.
    """

    digest: str
    nfe: int | None
    guidance: float
    base: str
    objective: str
    calls: int
    curve: tuple[tuple[int, float], ...]
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> "Provenance":
        return cls(**{**d, "curve": tuple((calls, error) for calls, error in d["curve"])})


@dataclass(frozen=True)
class Learned:
    """One thing learned; `values` are JSON, `arrays` float64, `curve` (calls spent, error then) as it went on."""

    method: str
    checkpoint: str
    digest: str
    schedule: Schedule
    nfe: int | None
    guidance: float
    base: str
    objective: str
    seed: int
    settings: Mapping[str, bool | int | float | str]
    cost: Cost
    curve: tuple[tuple[int, float], ...]
    values: Mapping[str, Any]
    arrays: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    sha256: str = ""

    @property
    def provenance(self) -> Provenance:
        return Provenance(
            self.digest, self.nfe, self.guidance, self.base, self.objective, self.cost.calls, self.curve, self.sha256
        )  # fmt: skip

    @property
    def stem(self) -> str:
        return file_stem(self.nfe, self.guidance)

    def to_files(self) -> dict[str, bytes]:
        """The files that hold it, by name, arrays first: what is there without its JSON is as if it were not."""
        arrays = {f"{self.stem}.safetensors": save(dict(self.arrays))} if self.arrays else {}
        about = {
            "format": FORMAT,
            **{k: getattr(self, k) for k in ("method", "checkpoint", "digest", "nfe", "guidance", "base", "objective")},
            "schedule": self.schedule.to_dict(),
            "seed": self.seed,
            "settings": dict(self.settings),
            "cost": asdict(self.cost) | {"calls": self.cost.calls},
            "curve": self.curve,
            "values": self.values,
            "arrays": {name: hashlib.sha256(data).hexdigest() for name, data in arrays.items()},
        }
        return arrays | {f"{self.stem}.json": (json.dumps(about, indent=1, allow_nan=False) + "\n").encode()}


def file_stem(nfe: int | None, guidance: float) -> str:
    return f"{'any' if nfe is None else f'nfe{nfe}'}-cfg{guidance:g}"


def read(path: Path) -> Learned:
    """Read what `Learned.to_files` wrote; raises LearnedError for anything else."""
    try:
        data = path.read_bytes()
        d = json.loads(data)
        if d["format"] != FORMAT:
            raise LearnedError(f"{path} is of format {d['format']}, this version reads {FORMAT}: tune again")
        arrays: dict[str, NDArray[np.float64]] = {}
        for name, digest in d["arrays"].items():
            raw = (path.parent / name).read_bytes()
            if hashlib.sha256(raw).hexdigest() != digest:
                raise LearnedError(f"{path.parent / name} is not the file that {path.name} was written with")
            arrays |= load(raw)
        cost = Cost(*(d["cost"][k] for k in ("forwards", "tangents", "backwards")))
        return Learned(
            **{k: d[k] for k in ("method", "checkpoint", "digest", "nfe", "base", "objective", "seed", "settings")},
            schedule=schedule_from_dict(d["schedule"]),
            guidance=float(d["guidance"]),
            cost=cost,
            curve=tuple((int(calls), float(error)) for calls, error in d["curve"]),
            values=d["values"],
            arrays=arrays,
            sha256=hashlib.sha256(data).hexdigest(),
        )
    except OSError as error:
        raise LearnedError(f"cannot read {error.filename}: {error.strerror}") from error
    except LearnedError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise LearnedError(f"{path} is nothing that `fewstep tune` wrote: {error!r}") from error


def entries(folder: str | Path, method: str, schedule: Schedule) -> list[Learned]:
    """All that `method` learned into a folder; raises LearnedError when it is of another method or schedule, or none.

    An empty `folder` stands for one that was not given.
    """
    if not str(folder):
        raise LearnedError(f"{method} learns from the checkpoint: run `fewstep tune {method}` and give tuned=FOLDER")
    found = [read(path) for path in sorted(Path(folder).glob("*-cfg*.json"))]
    if not found:
        raise LearnedError(f"{folder} holds nothing learned: run `fewstep tune {method}` first")
    for one in found:
        if one.method != method:
            raise LearnedError(f"{folder} was learned by {one.method}, not by {method}")
        if one.schedule != schedule:
            raise LearnedError(f"{folder} was learned on {one.schedule}, not on {schedule}")
    return found


def pick(found: Iterable[Learned], nfe: int | None, guidance: float) -> Learned | None:
    """The one for exactly this budget and guidance scale, or None."""
    return next((one for one in found if one.nfe == nfe and abs(one.guidance - guidance) < 1e-9), None)


def holdings(found: Iterable[Learned]) -> str:
    """What there is, for a message: `5, 6 calls at guidance 1; any budget at guidance 4`."""
    scales: dict[float, list[str]] = {}
    for one in sorted(found, key=lambda one: (one.guidance, one.nfe or 0)):
        scales.setdefault(one.guidance, []).append("any budget" if one.nfe is None else str(one.nfe))
    return "; ".join(
        f"{', '.join(n)}{'' if n == ['any budget'] else ' calls'} at guidance {scale:g}" for scale, n in scales.items()
    )
