"""Time-Shift sampler: each state is called at the time whose noise it shows.  Li et al. 2023, arXiv 2305.15583.

A sampler's errors change the variance of its states, so that the state x of step t may fit another time t_s better.
At every call of a base solver but the first, above a cutoff, Algorithm 3 takes
    t_s = argmin over [t - w/2, t + w/2] of |var(x) - sigma^2(t_s)|,        var over the numbers of each sample alone
and goes on from (x, t_s): the network is called at t_s, and the step starts there too.  The coefficients of a plan
belong to t, so the state is led back to t at no call, along the data D and the noise e that the network saw in it at
t_s: x = alpha D + sigma e.  For DDIM, whose steps follow the same D and e, that is Algorithm 3 to the letter; other
bases have their own steps from t on.  What the authors released is another algorithm: see time_shift_official.py.

The window w and the cutoff count DDPM's labels n, t = (n + 1)/1000; on EDM, whose t is sigma, those of equal noise
sigma/alpha.  Variances are those of x/sqrt(alpha^2 + sigma^2), so that how a schedule is scaled does not matter.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

import solvers
from solvers import time_shift_official as released
from solvers.learned import Learned, LearnedError, Provenance, entries, pick
from solvers.model import Cond, Denoiser, Prediction, column, conversion
from solvers.plan import START, Combine, Evaluate, Noise, Option, Plan
from solvers.schedule import Array, Schedule
from solvers.time_shift_labels import LABELS, Shifts, coupled, label_of, levels, norm, time_of
from solvers.tracer import LEARNING, check_word, not_learned, resolve, summary

# The solvers of the paper and of the released code; all are one call to begin with, then steps from state to state.
PLAIN = (
    *("ddim", "pndm_s", "pndm_f", "dpm_solver_1", "dpm_solver_2", "dpm_solver_3", "dpm_solver_2m"),
    *("deis_tab0", "deis_tab1", "deis_tab2", "deis_tab3"),
)
BASES: Mapping[str, tuple[str, Mapping[str, Option]]] = MappingProxyType(
    {name: (name, {}) for name in PLAIN} | {"ddpm": ("ddim", {"eta": 1.0})}
)


@dataclass(frozen=True)
class TimeShift:
    """A base's plan, whose calls move to the times that their states show: no plan any more.  Immutable.

    It claims no order: the shifts do not vanish with the steps.
    """

    base: str
    window: int
    cutoff: int
    official: str
    plan: Plan
    learned_from: Provenance | None = None

    method = "time_shift"
    order = 0

    @property
    def options(self) -> tuple[tuple[str, Option], ...]:
        about: dict[str, Option] = {
            "base": self.base,
            "window": self.window,
            "cutoff": self.cutoff,
            "official": self.official,
        }
        if self.learned_from:
            about["tuned"] = self.learned_from.sha256[:12]
        return tuple(about.items())

    @property
    def predicts(self) -> Prediction:
        return self.plan.predicts

    @property
    def schedule(self) -> Schedule:
        return self.plan.schedule

    @property
    def times(self) -> tuple[float, ...]:
        return self.plan.times

    @property
    def nfe(self) -> int:
        return self.plan.nfe

    @cached_property
    def draws(self) -> int:
        return self.plan.draws

    def to_json(self) -> str:
        """One JSON object that says what will be run; floats are written so that they read back exactly."""
        about = {"method": self.method, "options": dict(self.options), "plan": json.loads(self.plan.to_json())}
        return json.dumps(about | ({"learned_from": self.learned_from.to_dict()} if self.learned_from else {}))

    def __str__(self) -> str:
        options = ", ".join(f"{k}={v}" for k, v in self.options)
        return f"{self.method}({options}): {self.nfe} calls, whose times depend on the states"

    def run(self, denoiser: Denoiser, x_T: Tensor, noise: Noise | None = None, cond: Cond | None = None) -> Tensor:
        """The sample made of x_T (B, *shape)."""
        return self.shifts(denoiser, x_T, noise, cond).x

    @torch.no_grad()
    def shifts(self, denoiser: Denoiser, x_T: Tensor, noise: Noise | None = None, cond: Cond | None = None) -> Shifts:
        """The sample, and the labels that the states showed; raises ValueError for a sample of a single number."""
        if x_T[0].numel() < 2:
            raise ValueError("time_shift takes the variance of a sample's numbers, and here a sample is one number")
        if self.official != "none":
            shift = released.SHIFTS[self.official](self.schedule, len(self.times) - 1, self.window, self.cutoff)
            return released.run(self.plan, self.base, shift, denoiser, x_T, noise, cond)
        registers, found = {START: x_T}, list[Array]()
        for i, dead in zip(self.plan.instructions, self.plan.dies, strict=True):
            if isinstance(i, Evaluate):
                registers[i.state], registers[i.out], labels = self._call(denoiser, registers[i.state], i, cond)
                found.append(labels)
            elif isinstance(i, Combine):
                terms = [c * registers[r] for c, r in i.terms]  # type: ignore[operator]  # no base has a number a pixel
                terms += [c * noise(k) for c, k in i.noise]  # type: ignore[misc]  # a plan with draws has noise
                registers[i.out] = sum(terms[1:], terms[0])
            for r in dead:
                del registers[r]
        nominal = tuple(label_of(self.schedule, self.plan.call_times).tolist())
        return Shifts(registers[self.plan.instructions[-1].out], nominal, np.array(found), np.array(found))

    def _call(self, denoiser: Denoiser, x: Tensor, i: Evaluate, cond: Cond | None) -> tuple[Tensor, Tensor, Array]:
        """The state at i.t that goes on, the output there, and the labels (B,) of the call."""
        label = float(label_of(self.schedule, i.t))
        if i.state == START or label <= self.cutoff or self.window == 0:
            return x, denoiser(x, i.t, self.predicts, cond), np.full(len(x), label)
        labels = coupled(self.schedule, x, label, self.window)
        t, s = np.full(len(x), i.t), time_of(self.schedule, labels)
        (a, sigma), (a_s, sigma_s) = levels(self.schedule, t, x), levels(self.schedule, s, x)
        x_s = column(norm(self.schedule, s) / norm(self.schedule, t), x) * x
        D = denoiser.at_each(x_s, s, "data", cond)
        x = a * D + sigma / sigma_s * (x_s - a_s * D)
        A, B = conversion("data", self.predicts, a, sigma)
        return x, A * D + B * x, labels


@dataclass(frozen=True)
class TimeShiftMethod:
    """What Method is to a plan: builds a TimeShift.

    Without a window and a cutoff, they are what `fewstep tune time_shift` found.
    """

    name: str

    order = 0
    adaptive = False
    learns = True
    note = (
        "official=pnm and adm: the released code, which shifts the target of a step and calls the network at the "
        "grid's labels; the paper calls it at the shifted ones, as official=none does"
    )
    grids: ClassVar[Mapping[str, str]] = MappingProxyType({"*": "the base's"})
    defaults: ClassVar[Mapping[str, Option]] = MappingProxyType(
        {"base": "ddim", "window": -1, "cutoff": -1, "official": "none", **LEARNING}
    )

    @property
    def summary(self) -> str:
        return summary(__doc__)

    def build(
        self,
        schedule: Schedule,
        nfe: int | None = None,
        grid: str | None = None,
        times: Sequence[float] | None = None,
        t_start: float | None = None,
        t_end: float | None = None,
        options: Mapping[str, Option] = MappingProxyType({}),
    ) -> TimeShift:
        """The base's plan, shifted; raises BudgetError where the base cannot spend the budget or none was tuned."""
        resolved = resolve(self.name, self.defaults, options)
        base, official = str(resolved["base"]), str(resolved["official"])
        window, cutoff = int(resolved["window"]), int(resolved["cutoff"])
        check_word(self.name, "base", base, BASES)
        check_word(self.name, "official", official, ("none", *released.SHIFTS))
        name, own = BASES[base]
        plan = solvers.method(name).build(schedule, nfe, grid, times, t_start, t_end, own)
        assert isinstance(plan, Plan)
        if (window, cutoff) == (-1, -1) and official == "none":
            learned = self._learned(plan, base, resolved)
            window, cutoff = learned.values["window"], learned.values["cutoff"]
            return TimeShift(base, window, cutoff, official, plan, learned.provenance)
        if not (0 <= window <= LABELS and 0 <= cutoff <= LABELS):
            raise ValueError(f"{self.name}: window={window}, cutoff={cutoff}: give both, in labels from 0 to {LABELS}")
        if official != "none":
            released.check(official, base, plan, window, cutoff)
        return TimeShift(base, window, cutoff, official, plan)

    def _learned(self, plan: Plan, base: str, resolved: Mapping[str, Option]) -> Learned:
        """What was tuned for the plan's budget; raises LearnedError or BudgetError where nothing was."""
        folder, guidance = str(resolved["tuned"]), float(resolved["guidance"])
        try:
            files = entries(folder, self.name, plan.schedule)
        except LearnedError as error:
            raise LearnedError(f"{error}; or give window and cutoff") from error
        learned = pick(files, plan.nfe, guidance)
        if learned is None:
            raise not_learned(self.name, resolved, files, plan.nfe)
        if learned.values["base"] != base:
            raise LearnedError(f"{folder} was tuned for {self.name}({learned.values['base']}), not for {base}")
        return learned


time_shift = TimeShiftMethod("time_shift")
