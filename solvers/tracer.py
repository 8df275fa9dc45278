"""From a solver's algorithm to its plan: the algorithm runs once over symbols, and what it does is written down.

A solver file is a function `f(p: Tracer, grid: Grid, **options)` under `@solver`; states and network outputs are
symbols with +, - and *, so the code is the paper's.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import hypot
from types import MappingProxyType
from typing import Any, Literal, Protocol, cast, get_args, runtime_checkable

import numpy as np
from torch import Tensor

from solvers.coefficient import coefficient, number
from solvers.grid import Grid, explicit, make_grid
from solvers.learned import Learned, entries, holdings
from solvers.model import PREDICTIONS, Prediction, conversion
from solvers.plan import ONES, START, Combine, Evaluate, Instruction, Option, Plan, Procedure, Rule, Threshold
from solvers.schedule import Array, Schedule

# What every method that learns is told: the folder that `fewstep tune` filled, the scale of guidance it will run at.
LEARNING: Mapping[str, Option] = MappingProxyType({"tuned": "", "guidance": 1.0})
Recall = Callable[[Sequence[Learned], int, float], Learned | None]  # of (files, nfe, guidance)

# What every method can do: end on the data prediction, threshold it, take the first step without a call.
COMMON: Mapping[str, Option] = MappingProxyType({"denoise_to_zero": False, "thresholding": "none", "afs": False})


@dataclass(frozen=True)
class Symbol:
    """A linear expression over registers and noise draws, each mapped to its float64 coefficient.

    A coefficient may also be an array of a sample's shape or, in a program to be differentiated, a tensor.
    """

    __array_ufunc__ = None  # so that numpy scalars leave `c * symbol` to us

    terms: Mapping[int, Any] = field(default_factory=dict)
    noise: Mapping[int, Any] = field(default_factory=dict)

    def __add__(self, other: "Symbol") -> "Symbol":
        return Symbol(_sum(self.terms, other.terms), _sum(self.noise, other.noise))

    def __sub__(self, other: "Symbol") -> "Symbol":
        return self + -1.0 * other

    def __mul__(self, c: Any) -> "Symbol":
        c = number(c)
        return Symbol({r: c * v for r, v in self.terms.items()}, {k: c * v for k, v in self.noise.items()})

    __rmul__ = __mul__

    def __truediv__(self, c: Any) -> "Symbol":
        inverse: Any = 1 / number(c)
        return Symbol({r: inverse * v for r, v in self.terms.items()}, {k: inverse * v for k, v in self.noise.items()})

    def __neg__(self) -> "Symbol":
        return self * -1.0


def _sum(a: Mapping[int, Any], b: Mapping[int, Any]) -> dict[int, Any]:
    return {r: a.get(r, 0.0) + b.get(r, 0.0) for r in (*a, *(r for r in b if r not in a))}


class Tracer:
    """What a solver runs on: it hands out symbols and records the instructions they stand for.

    `learned` is what the method was taught by the checkpoint, by name.
    """

    def __init__(
        self,
        grid: Grid,
        predicts: Prediction = "data",
        options: Mapping[str, Option] = COMMON,
        learned: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.grid = grid
        self.learned = learned
        self.predicts = predicts
        self.thresholding = cast(Rule | Literal["none"], options["thresholding"])
        self.afs = options["afs"]
        self.instructions: list[Instruction] = []
        self._begun = False
        self._draws = 0

    def start(self) -> Symbol:
        """x_T."""
        return Symbol({START: 1.0})

    def model(self, x: Symbol, i: int) -> Symbol:
        """The network's output at state x and the grid's i-th time: one call."""
        return self.model_at(x, self.grid.times[i])

    def model_at(self, x: Symbol, t: float) -> Symbol:
        """The network's output at state x and a time t off the grid: one call."""
        if self.afs and not self._begun:
            self._begun = True
            return self._analytical(x, t)
        state = self._register(x)
        self.instructions.append(Evaluate(self._next(), state, float(t)))
        if self.thresholding != "none":
            self.instructions.append(Threshold(self._next(), self._next() - 1, self.thresholding))
        return Symbol({self.instructions[-1].out: 1.0})

    def _analytical(self, x: Symbol, t: float) -> Symbol:
        """The output at noise so strong that x is all noise, at no call: eps = x / sqrt(alpha^2 + sigma^2).

        Dockhorn et al. 2022, arXiv 2210.05475, Appendix C.
        """
        alpha, sigma = float(self.grid.schedule.alpha(t)), float(self.grid.schedule.sigma(t))
        A, B = conversion("noise", self.predicts, alpha, sigma)
        c: float = A / hypot(alpha, sigma) + B
        return c * x

    def state(self, x: Symbol) -> Symbol:
        """Write x to a register of its own; the last state written is the sample.  Terms that are 0 are dropped."""
        terms = tuple((kept, r) for r, c in x.terms.items() if (kept := coefficient(c)) is not None)
        noise = tuple((c, k) for k, c in x.noise.items() if c != 0)
        self.instructions.append(Combine(self._next(), terms, noise))
        return Symbol({self.instructions[-1].out: 1.0})

    def constant(self, c: Array | float) -> Symbol:
        """The same for every sample: a number, or an array of a sample's shape."""
        return Symbol({ONES: c})

    def noise(self) -> Symbol:
        """A fresh standard normal draw."""
        self._draws += 1
        return Symbol(noise={self._draws - 1: 1.0})

    def denoise(self) -> None:
        """One more call, at the end of the grid, whose data prediction becomes the sample."""
        x, end = Symbol({self.instructions[-1].out: 1.0}), self.grid.steps
        A, B = conversion(self.predicts, "data", self.grid.alpha[end], self.grid.sigma[end])
        self.state(A * self.model(x, end) + B * x)

    def _next(self) -> int:
        return len(self.instructions) + 1

    def _register(self, x: Symbol) -> int:
        (register, c), *more = x.terms.items()
        if more or x.noise or isinstance(c, np.ndarray | Tensor) or c != 1:
            (register,) = self.state(x).terms
        return register


class BudgetError(ValueError):
    """A budget of network calls that a method cannot spend exactly; the message says which it can."""


@runtime_checkable
class Solver(Protocol):
    """What a registered solver is: something with a name that builds what `sample` runs.

    One that `learns` takes the folder that `fewstep tune` filled as its option `tuned`, and the `guidance` scale that
    it will be sampled at.
    """

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str: ...

    @property
    def order(self) -> int | Callable[[Mapping[str, Option]], int]: ...

    @property
    def note(self) -> str: ...

    @property
    def defaults(self) -> Mapping[str, Option]: ...

    @property
    def adaptive(self) -> bool: ...

    @property
    def learns(self) -> bool: ...

    @property
    def build(self) -> Callable[..., "Plan | Procedure"]: ...


@dataclass(frozen=True)
class Method:
    """A solver: its algorithm and what is true of it whatever the budget.

    `order` is its order of convergence, a function of its options where they change it; `predicts` is the
    parametrisation it works in, unless it has an option of that name.  `grids` maps a schedule's class name to the grid
    its authors use there, "*" standing for any other schedule.  `note` says where the official code and the paper part,
    and which of them this is; `nominal` is the order of a formula made for equal steps, where unequal ones lower it.
    `recall` says, for a method that learns, which of the files in its folder serves a budget and a guidance scale.
    """

    name: str
    trace: Callable[..., None]
    order: int | Callable[[Mapping[str, Option]], int]
    predicts: Prediction
    grids: Mapping[str, str]
    note: str = ""
    nominal: int | Callable[[Mapping[str, Option]], int] | None = None
    recall: Recall | None = None

    adaptive = False

    @property
    def learns(self) -> bool:
        return self.recall is not None

    @property
    def defaults(self) -> dict[str, Option]:
        """The method's own options, which follow the tracer and the grid, and those that every method has."""
        parameters = list(inspect.signature(self.trace).parameters.values())[2:]
        return {p.name: p.default for p in parameters} | dict(LEARNING if self.learns else {}) | dict(COMMON)

    @property
    def summary(self) -> str:
        """First sentence of the solver file's docstring, with its paper."""
        return summary(inspect.getdoc(inspect.getmodule(self.trace)))

    def nominal_order(self, options: Mapping[str, Option]) -> int:
        """The order that the formula has on equal steps: at least the order that it declares."""
        resolved = self.resolve(options)
        order = self.order(resolved) if callable(self.order) else self.order
        nominal = self.nominal(resolved) if callable(self.nominal) else self.nominal
        return max(order, nominal or 0)

    def default_grid(self, schedule: Schedule) -> str:
        return self.grids.get(type(schedule).__name__, self.grids["*"])

    def resolve(self, options: Mapping[str, Option]) -> dict[str, Option]:
        """All options with their values; raises ValueError for an option it lacks or a value of another type."""
        return resolve(self.name, self.defaults, options)

    def on(self, grid: Grid, options: Mapping[str, Option], learned: Learned | Mapping[str, Any] | None = None) -> Plan:
        """The plan on a given grid, with what was learned for it; raises ValueError for unknown options.

        A tuner tries values out that are in no file: a plain mapping, of which the plan keeps no provenance.
        """
        resolved = self.resolve(options)
        predicts = self._parametrisation(resolved)
        filed = learned if isinstance(learned, Learned) else None
        values = {**filed.values, **filed.arrays} if filed else cast(Mapping[str, Any], learned or {})
        tracer = Tracer(grid, predicts, resolved, values)
        self.trace(tracer, grid, **{k: v for k, v in resolved.items() if k not in (*COMMON, *LEARNING)})
        if filed:  # what decides is in the file, not where it lies
            resolved["tuned"] = filed.sha256[:12]
        times = grid.times
        if resolved["denoise_to_zero"]:
            if times[-1] == 0:
                raise ValueError("denoise_to_zero=True: this grid ends on the data already")
            tracer.denoise()
            times = (*times, 0.0)
        order = self.order(resolved) if callable(self.order) else self.order
        return Plan(
            self.name, tuple(resolved.items()), order, predicts, grid.schedule, times, tuple(tracer.instructions),
            filed.provenance if filed else None,
        )  # fmt: skip

    def _parametrisation(self, resolved: Mapping[str, Option]) -> Prediction:
        """What the network's outputs are converted to; raises ValueError where thresholding has no data to act on."""
        predicts = resolved.get("predicts", self.predicts)
        if predicts not in PREDICTIONS:
            raise ValueError(f"{self.name}: predicts={predicts!r} is none of {', '.join(PREDICTIONS)}")
        if resolved["thresholding"] not in ("none", *get_args(Rule)):
            raise ValueError(f"{self.name}: thresholding={resolved['thresholding']!r} is none of none, static, dynamic")
        if resolved["thresholding"] != "none" and predicts != "data":
            raise ValueError(f"{self.name}: thresholding acts on data prediction, and this works in {predicts}")
        return predicts

    def build(
        self,
        schedule: Schedule,
        nfe: int | None = None,
        grid: str | None = None,
        times: Sequence[float] | None = None,
        t_start: float | None = None,
        t_end: float | None = None,
        options: Mapping[str, Option] = MappingProxyType({}),
    ) -> Plan:
        """The plan for a budget of calls on a named grid, or on explicit times."""
        if times is not None and nfe is None and grid is None and t_start is None and t_end is None:
            explicitly = explicit(schedule, times)
            return self.on(explicitly, options, self._learned(schedule, explicitly.steps, options))
        if nfe is None or times is not None:
            raise ValueError(
                "give either nfe, a budget of network calls, or times, the whole grid, and nothing beside it"
            )
        name = grid or self.default_grid(schedule)
        return self.spend(nfe, lambda steps: make_grid(name, schedule, steps, t_start, t_end), options)

    def _learned(self, schedule: Schedule, nfe: int, options: Mapping[str, Option]) -> Learned | None:
        """What the method learned for a budget; raises LearnedError where it learned nothing for this schedule."""
        if self.recall is None:
            return None
        resolved = self.resolve(options)
        found = entries(str(resolved["tuned"]), self.name, schedule)
        learned = self.recall(found, nfe, float(resolved["guidance"]))
        if learned is None:
            raise not_learned(self.name, resolved, found, nfe)
        return learned

    def spend(self, nfe: int, grid_of: Callable[[int], Grid], options: Mapping[str, Option]) -> Plan:
        """The plan of exactly `nfe` calls, found by bisection over the number of steps, on which calls rise.

        Raises BudgetError naming the nearest budgets when there is none.
        """
        if isinstance(nfe, bool) or not isinstance(nfe, int) or nfe < 1:
            raise BudgetError(f"nfe must be a whole number of network calls >= 1, not {nfe!r}")
        schedule = grid_of(1).schedule  # what fails with one step fails for a reason of its own
        learned = self._learned(schedule, nfe, options)

        @cache
        def plan(steps: int) -> Plan | None:
            try:
                grid = grid_of(steps)
            except ValueError:  # a discrete schedule has no room for so many steps
                return None
            return self.on(grid, options, learned)

        if (usual := plan(nfe)) is not None and usual.nfe == nfe:  # one call a step, as most methods
            return usual
        low, high = 1, nfe + 1  # every step costs at least one call, but for an analytical first one
        while low < high:
            middle = (low + high) // 2
            tried = plan(middle)
            low, high = (low, middle) if tried is None or tried.nfe >= nfe else (middle + 1, high)
        found = plan(low)
        if found is not None and found.nfe == nfe:
            return found
        near = sorted({p.nfe for s in range(max(1, low - 2), low + 3) if (p := plan(s)) and p.nfe})
        raise BudgetError(f"{self.name} cannot spend {nfe} calls: it can spend {', '.join(map(str, near))} ...")


def not_learned(method: str, resolved: Mapping[str, Option], found: Sequence[Learned], nfe: int) -> BudgetError:
    """The one-line error for a budget, at a scale of guidance, that nothing in the folder serves."""
    return BudgetError(
        f"{method}: {resolved['tuned']} holds {holdings(found)}, not {nfe} at guidance {resolved['guidance']:g}: "
        f"run `fewstep tune {method}` for it"
    )


def resolve(method: str, known: Mapping[str, Option], options: Mapping[str, Option]) -> dict[str, Option]:
    """All known options with their values; raises ValueError for one the method lacks or a value of another type."""
    for name, value in options.items():
        if name not in known:
            raise ValueError(f"{method} has no option {name!r}: it has {', '.join(known) or 'none'}")
        accepted = (int, float) if isinstance(known[name], float) else type(known[name])
        if not isinstance(value, accepted) or isinstance(value, bool) != isinstance(known[name], bool):
            wanted = f"a {type(known[name]).__name__} such as {known[name]!r}"
            raise ValueError(f"{method}: {name}={value!r} is not {wanted}")
    return {k: type(v)(options[k]) if k in options else v for k, v in known.items()}


def check_word(method: str, option: str, value: str, accepted: Iterable[str]) -> None:
    """Raises ValueError naming the words that an option accepts, unless `value` is one of them."""
    if value not in accepted:
        raise ValueError(f"{method}: {option}={value!r} is none of {', '.join(accepted)}")


def check_unit(method: str, option: str, value: float) -> None:
    """Raises ValueError unless `value` lies between 0 and 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{method}: {option}={value} must lie in [0, 1]")


def summary(doc: str | None) -> str:
    """First paragraph of a solver file's docstring: what it is, with its paper."""
    return (doc or "").partition("\n\n")[0].replace("\n", " ")


def solver(
    name: str,
    *,
    order: int | Callable[[Mapping[str, Option]], int],
    predicts: Prediction,
    grids: Mapping[str, str],
    note: str = "",
    nominal: int | Callable[[Mapping[str, Option]], int] | None = None,
    recall: Recall | None = None,
) -> Callable[[Callable[..., None]], Method]:
    """Declare a solver; see Method for the arguments.  The decorated function becomes a Method."""

    def declare(trace: Callable[..., None]) -> Method:
        return Method(name, trace, order, predicts, MappingProxyType({"*": "uniform", **grids}), note, nominal, recall)

    return declare
