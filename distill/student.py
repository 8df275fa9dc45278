"""What a student is sampled with: the few-step sampler it was trained for, as data that its card carries."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import solvers
from solvers.plan import START, Combine, Evaluate, Instruction, Option, Threshold
from solvers.schedule import Schedule, VPDiscrete

Budgets = Mapping[int, tuple[float, ...]]


@dataclass(frozen=True)
class FewStep:
    """A few-step sampler: a solver with its options, where the steps lie at each budget, and how it is guided.

    The steps lie on the grid called `grid` at each of `budgets`, or, for each budget, on all of `labels`, which are
    training labels of a discrete schedule with -1 for the data, or on all of `times`, the schedule's own; from noise to
    where the sample is.  `guidance` is the scale unless another is asked for in the interval `accepts`; `embedded`
    says that it is an input of the network.  With `from_sigma` the start is sigma z, as samplers in k-diffusion's
    coordinates begin, where sampling begins with z on a variance-preserving schedule else.

    Raises ValueError for a sampler that is none: no budget, a default that it would not accept itself.
    """

    solver: str
    options: Mapping[str, Option] = field(default_factory=dict)
    grid: str = ""
    budgets: tuple[int, ...] = ()
    labels: Budgets = field(default_factory=dict)
    times: Budgets = field(default_factory=dict)
    guidance: float = 1.0
    accepts: tuple[float, float] = (1.0, 1.0)
    embedded: bool = False
    from_sigma: bool = False

    def __post_init__(self) -> None:
        if bool(self.grid) != bool(self.budgets) or sum(map(bool, (self.grid, self.labels, self.times))) != 1:
            raise ValueError("a few-step sampler needs a grid with budgets, or else labels, or else times, by budget")
        if not isinstance(self.solver, str):
            raise ValueError(f"solver = {self.solver!r} is not a name")
        if wrong := [n for n in self.trained_for if not isinstance(n, int) or isinstance(n, bool) or n < 1]:
            raise ValueError(f"a budget is a whole number of network calls >= 1, not {wrong[0]!r}")
        low, high = self.accepts
        if not low <= self.guidance <= high:
            raise ValueError(f"guidance = {self.guidance:g} lies outside what is accepted, [{low:g}, {high:g}]")

    @property
    def trained_for(self) -> tuple[int, ...]:
        """The budgets of network calls, rising."""
        return tuple(sorted(self.budgets or self.labels or self.times))

    def plan(self, schedule: Schedule, nfe: int) -> solvers.Plan:
        """The plan of `nfe` calls.

        Raises BudgetError naming the budgets that there are, and ValueError where the schedule or the solver does not
        fit.
        """
        if nfe not in self.trained_for:
            known = ", ".join(map(str, self.trained_for))
            raise solvers.BudgetError(f"no {nfe} calls: the student was trained for {known}")
        method = solvers.method(self.solver)
        if self.grid:
            made = method.build(schedule, nfe, self.grid, options=self.options)
        else:
            made = method.build(schedule, times=self._times(schedule, nfe), options=self.options)
        if not isinstance(made, solvers.Plan) or made.nfe != nfe:
            raise ValueError(f"{self.solver} makes {made.nfe} calls on the steps that the student has for {nfe}")
        scale = float(schedule.sigma(made.times[0])) / schedule.prior_std(made.times[0])
        return started(made, scale) if self.from_sigma else made

    def _times(self, schedule: Schedule, nfe: int) -> list[float]:
        if self.times:
            return list(self.times[nfe])
        if not isinstance(schedule, VPDiscrete):
            raise ValueError(f"the student's labels need a VPDiscrete schedule, not {type(schedule).__name__}")
        return [(label + 1) / len(schedule.betas) for label in self.labels[nfe]]

    def scale(self, asked: float | None = None) -> float:
        """The scale of guidance: the student's own, or the one asked for; raises ValueError for one not accepted."""
        low, high = self.accepts
        if asked is None or low <= asked <= high:
            return self.guidance if asked is None else asked
        accepted = f"{low:g} alone" if low == high else f"{low:g} to {high:g}"
        raise ValueError(f"guidance = {asked:g}: the student accepts {accepted}")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, read back by `from_dict`."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        by_budget = {k: {str(n): list(v) for n, v in given[k].items()} for k in ("labels", "times")}
        rows = {k: list(given[k]) for k in ("budgets", "accepts")}
        return given | {"options": dict(self.options)} | rows | by_budget

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> "FewStep":
        """Read what `to_dict` wrote; raises ValueError for anything else."""
        known = [f.name for f in fields(cls)]
        if not isinstance(d, Mapping):
            raise ValueError(f"not a few-step sampler: {d!r}")
        if unknown := [k for k in d if k not in known]:
            raise ValueError(f"a few-step sampler has no {unknown[0]!r}: it has {', '.join(known)}")
        try:
            by_budget = {k: {int(n): tuple(v) for n, v in d[k].items()} for k in ("labels", "times") if k in d}
            rows = {k: tuple(d[k]) for k in ("budgets", "accepts") if k in d}
            return cls(**{**d, **by_budget, **rows})
        except (TypeError, AttributeError) as error:
            raise ValueError(f"not a few-step sampler: {error}") from error


def started(plan: solvers.Plan, scale: float) -> solvers.Plan:
    """The plan that multiplies x_T by `scale` first; its registers are the plan's, one further on."""

    def moved(i: Instruction) -> Instruction:
        match i:
            case Evaluate(out, state, t):
                return Evaluate(out + 1, state + 1, t)
            case Threshold(out, register, rule):
                return Threshold(out + 1, register + 1, rule)
            case Combine(out, terms, noise):
                return Combine(out + 1, tuple((c, r + 1 if r >= START else r) for c, r in terms), noise)

    first = Combine(START + 1, ((scale, START),))
    return replace(plan, instructions=(first, *map(moved, plan.instructions)))
