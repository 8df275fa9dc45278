"""A plan is a sampler as data: a straight-line program of network calls and linear combinations.

Immutable, validated on construction, printable as a table, JSON in and out.  Register 0 holds x_T; every instruction
writes a register of its own; the last one written is the sample.  Thresholding alone is not linear.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, Protocol, get_args

from torch import Tensor

from solvers.coefficient import Coefficient, finite, from_json, to_json
from solvers.grid import Grid
from solvers.learned import Provenance
from solvers.model import PREDICTIONS, Cond, Denoiser, Prediction
from solvers.schedule import Schedule, schedule_from_dict

START = 0  # the register of x_T
ONES = -1  # the register that holds 1 everywhere, for a constant
Option = bool | int | float | str
Noise = Callable[[int], Tensor]


class PlanError(ValueError):
    """A program that cannot run; the message says which instruction and why."""


@dataclass(frozen=True)
class Evaluate:
    """out = model(state, t): one network call, converted to the plan's parametrisation."""

    out: int
    state: int
    t: float


@dataclass(frozen=True)
class Combine:
    """out = sum of coefficient x register + sum of coefficient x noise draw, in the order given."""

    out: int
    terms: tuple[tuple[Coefficient, int], ...]
    noise: tuple[tuple[float, int], ...] = ()


Rule = Literal["static", "dynamic"]


@dataclass(frozen=True)
class Threshold:
    """out = the data prediction in `register` pulled back to the range of the data: a map that is not linear.

    "static" clamps to [-1, 1]; "dynamic" clamps to [-S, S] and divides by S, where S is the larger of 1 and the 99.5 %
    quantile of |x| in each sample.  Saharia et al. 2022, arXiv 2205.11487, Section 2.3.
    """

    out: int
    register: int
    rule: Rule


Instruction = Evaluate | Threshold | Combine


@dataclass(frozen=True)
class Plan:
    """Everything that a fixed-step sampler will do, in order.

    `order` is the method's order of convergence, `predicts` the parametrisation its network outputs are in, `times` the
    grid from noise to data, `options` what the method was built with, `learned_from` where what it learned comes from.
    Raises PlanError when the program is not valid.
    """

    method: str
    options: tuple[tuple[str, Option], ...]
    order: int
    predicts: Prediction
    schedule: Schedule
    times: tuple[float, ...]
    instructions: tuple[Instruction, ...]
    learned_from: Provenance | None = None

    def __post_init__(self) -> None:
        if not all(isinstance(value, Option) for _, value in self.options):
            raise PlanError(f"options must be booleans, numbers or words, not {self.options}")
        try:
            Grid(self.schedule, self.times)
        except (ValueError, TypeError) as error:
            raise PlanError(str(error)) from error
        if self.predicts not in PREDICTIONS:
            raise PlanError(f"predicts must be one of {', '.join(PREDICTIONS)}, not {self.predicts!r}")
        if not self.instructions or not isinstance(self.instructions[-1], Combine):
            raise PlanError("a plan ends with a Combine that writes the sample")
        known = {START}
        for k, instruction in enumerate(self.instructions):
            self._check(k, instruction, known)
            known.add(instruction.out)

    def _check(self, k: int, instruction: Instruction, known: set[int]) -> None:
        where = f"instruction {k} ({type(instruction).__name__})"
        if unknown := [r for r in reads(instruction) if r not in known]:
            raise PlanError(f"{where} reads register {unknown[0]}, which nothing has written")
        if instruction.out in known:
            raise PlanError(f"{where} writes register {instruction.out} a second time")
        if isinstance(instruction, Evaluate):
            if not 0 < instruction.t <= self.schedule.t_max * (1 + 1e-9):
                raise PlanError(f"{where} calls the network at t = {instruction.t}, outside (0, {self.schedule.t_max}]")
            return
        if isinstance(instruction, Threshold):
            if instruction.rule not in get_args(Rule) or self.predicts != "data":
                raise PlanError(f"{where}: {instruction.rule!r} must be static or dynamic, on data prediction")
            return
        if not instruction.terms and not instruction.noise:
            raise PlanError(f"{where} has no terms")
        for what in (instruction.terms, instruction.noise):
            if len({r for _, r in what}) < len(what):
                raise PlanError(f"{where} names a register or a draw twice: add its coefficients")
        for c, r in instruction.terms + instruction.noise:
            if not finite(c):
                raise PlanError(f"{where} has the coefficient {c} at register {r}")

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone: what was made of them for one device means nothing where a pickle is opened."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def nfe(self) -> int:
        """Network calls."""
        return len(self.call_times)

    @cached_property
    def call_times(self) -> tuple[float, ...]:
        """The time of each network call, in order."""
        return tuple(i.t for i in self.instructions if isinstance(i, Evaluate))

    @property
    def linear(self) -> bool:
        """Whether the sample is a linear map of x_T, the network's outputs and the noise."""
        return not any(
            isinstance(i, Threshold) or (isinstance(i, Combine) and any(r == ONES for _, r in i.terms))
            for i in self.instructions
        )

    @cached_property
    def buffers(self) -> int:
        """The most registers that are alive at once, between two instructions."""
        alive, most = 1, 1
        for dead in self.dies:
            alive += 1 - len(dead)
            most = max(most, alive)
        return most

    @cached_property
    def draws(self) -> int:
        """Noise draws a sample; 0 for an ODE solver."""
        return 1 + max((k for i in self.instructions if isinstance(i, Combine) for _, k in i.noise), default=-1)

    @cached_property
    def dies(self) -> tuple[tuple[int, ...], ...]:
        """For each instruction, the registers that nothing reads after it."""
        last = {r: k for k, i in enumerate(self.instructions) for r in (*reads(i), i.out)}
        last.pop(self.instructions[-1].out)
        dies: list[list[int]] = [[] for _ in self.instructions]
        for r, k in last.items():
            dies[k].append(r)
        return tuple(map(tuple, dies))

    @cached_property
    def programs(self) -> dict[Any, Any]:
        """What the executor made of the plan, for each kind of network and dtype; kept, so that it is made once."""
        return {}

    def to_json(self) -> str:
        """One JSON object; floats are written so that they read back exactly."""
        return json.dumps({
            "method": self.method,
            "options": dict(self.options),
            "order": self.order,
            "predicts": self.predicts,
            "schedule": self.schedule.to_dict(),
            "times": self.times,
            "instructions": [_to_dict(i) for i in self.instructions],
        } | ({"learned_from": self.learned_from.to_dict()} if self.learned_from else {}))  # fmt: skip

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Read what `to_json` wrote; raises PlanError for anything else."""
        try:
            d = json.loads(text)
            return cls(
                method=d["method"],
                options=tuple(d["options"].items()),
                order=d["order"],
                predicts=d["predicts"],
                schedule=schedule_from_dict(d["schedule"]),
                times=tuple(d["times"]),
                instructions=tuple(_from_dict(i) for i in d["instructions"]),
                learned_from=Provenance.from_dict(d["learned_from"]) if "learned_from" in d else None,
            )
        except PlanError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise PlanError(f"not a plan: {error!r}") from error

    def __str__(self) -> str:
        options = ", ".join(f"{k}={v}" for k, v in self.options)
        head = f"{self.method}({options}): {self.nfe} calls, order {self.order}, {self.predicts} prediction"
        rows = [_row(i, self.predicts[0].upper()) for i in self.instructions]
        left, middle = (max(len(r[c]) for r in rows) for c in (0, 1))
        return "\n".join([head, *(f"  {a:<{left}} = {b:<{middle}}  {c}".rstrip() for a, b, c in rows)])


class Procedure(Protocol):
    """A sampler that is no straight-line program, since what it does next depends on the states.

    `times` are the first and the last; `nfe` is None where the number of calls depends on the states too.
    """

    @property
    def method(self) -> str: ...

    @property
    def options(self) -> tuple[tuple[str, Option], ...]: ...

    @property
    def order(self) -> int: ...

    @property
    def predicts(self) -> Prediction: ...

    @property
    def schedule(self) -> Schedule: ...

    @property
    def times(self) -> tuple[float, ...]: ...

    @property
    def nfe(self) -> int | None: ...

    @property
    def learned_from(self) -> Provenance | None: ...

    @cached_property
    def draws(self) -> int: ...

    def to_json(self) -> str: ...

    def run(self, denoiser: Denoiser, x_T: Tensor, noise: Noise | None, cond: Cond | None) -> Tensor: ...


def reads(instruction: Instruction) -> tuple[int, ...]:
    """The registers an instruction reads, but for ONES, which nothing writes."""
    match instruction:
        case Evaluate(state=register) | Threshold(register=register):
            return (register,)
        case Combine(terms=terms):
            return tuple(r for _, r in terms if r != ONES)


def _row(instruction: Instruction, letter: str) -> tuple[str, str, str]:
    """Left side, right side, remark; network outputs and states share one numbering of registers."""
    if isinstance(instruction, Evaluate):
        return f"r{instruction.out}", f"model(r{instruction.state})", f"{letter} at t = {instruction.t:.6g}"
    if isinstance(instruction, Threshold):
        return f"r{instruction.out}", f"{instruction.rule} threshold(r{instruction.register})", ""
    terms = [f"{c:+.6g} r{r}" if r != ONES else f"{c:+.6g}" for c, r in instruction.terms] + [
        f"{c:+.6g} z{k}" for c, k in instruction.noise
    ]
    return f"r{instruction.out}", " ".join(terms).removeprefix("+"), ""


def _to_dict(instruction: Instruction) -> dict[str, Any]:
    if isinstance(instruction, Evaluate):
        return {"out": instruction.out, "model": instruction.state, "t": instruction.t}
    if isinstance(instruction, Threshold):
        return {"out": instruction.out, "threshold": instruction.register, "rule": instruction.rule}
    terms = [(to_json(c), r) for c, r in instruction.terms]
    return {"out": instruction.out, "terms": terms, "noise": instruction.noise}


def _from_dict(d: Mapping[str, Any]) -> Instruction:
    if "model" in d:
        return Evaluate(d["out"], d["model"], d["t"])
    if "threshold" in d:
        return Threshold(d["out"], d["threshold"], d["rule"])
    terms = tuple((from_json(c), r) for c, r in d["terms"])
    return Combine(d["out"], terms, tuple((c, k) for c, k in d["noise"]))
