"""DPM-Solver, adaptive: steps as long as the error allows.  Lu et al. 2022, arXiv 2206.00927, Appendix C.

An embedded pair, of orders 1 and 2 or 2 and 3, gives two answers at the end of a step, and their difference, measured
in units of the tolerance, gives the length of the next one: the calls depend on the data.  By default every sample has
its own steps, so that it does not depend on its batch; `joint=True` is the official code, where the worst sample (in
k-diffusion the batch's root mean square) decides for all.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from solvers.grid import explicit
from solvers.model import Cond, Denoiser, Prediction, column
from solvers.plan import Noise, Option
from solvers.schedule import Array, Schedule
from solvers.tracer import BudgetError, check_word, resolve, summary

END = 1e-5  # of lambda: nearer than this to the end is the end
SHORTEST = 1e-10  # of lambda: a step below it means that no step meets the tolerance


@dataclass(frozen=True)
class Adaptive:
    """A sampler whose times depend on the states: no plan, and no budget of calls.  Immutable.

    `times` are the first and the last, and 0 if the last is denoised; `nfe` is None, since only the denoiser's count of
    evaluated samples tells.
    """

    method: str
    options: tuple[tuple[str, Option], ...]
    order: int
    schedule: Schedule
    times: tuple[float, ...]

    predicts: Prediction = "noise"
    nfe = None
    draws = 0
    learned_from = None

    def to_json(self) -> str:
        """One JSON object that says what will be run; floats are written so that they read back exactly."""
        return json.dumps({
            "method": self.method,
            "options": dict(self.options),
            "order": self.order,
            "schedule": self.schedule.to_dict(),
            "times": self.times,
        })  # fmt: skip

    def __str__(self) -> str:
        options = ", ".join(f"{k}={v}" for k, v in self.options)
        return f"{self.method}({options}): steps and calls depend on the data, order {self.order}, noise prediction"

    @torch.no_grad()
    def run(self, denoiser: Denoiser, x_T: Tensor, noise: Noise | None = None, cond: Cond | None = None) -> Tensor:
        """The sample made of x_T (B, *shape); raises FloatingPointError where no step meets the tolerance."""
        options = dict(self.options)
        begin, end = (float(lam) for lam in self.schedule.lam(self.times[:2]))
        x, x_prev = x_T.clone(), x_T.clone()
        lam, h = np.full(len(x), begin), np.full(len(x), options["h_init"])
        cond = cond or {}
        while len(on := np.flatnonzero(end - lam > END)):
            step = np.minimum(h[on], end - lam[on])
            part = {k: v[on] for k, v in cond.items()}
            low, high = PAIRS[self.order](denoiser, x[on], lam[on], step, part)
            error = _error(low, high, x_prev[on], options)
            accepted, h[on] = CONTROLLERS[str(options["control"])](error, h[on], step, self.order)
            if not np.isfinite(error).all() or (h < SHORTEST).any():
                raise FloatingPointError(f"{self.method}: no step meets rtol={options['rtol']}, atol={options['atol']}")
            done = on[accepted]
            x[done], x_prev[done], lam[done] = high[accepted], low[accepted], (lam[on] + step)[accepted]
        if options["denoise_to_zero"]:
            return denoiser(x, self.times[1], "data", cond)
        return x


def _levels(schedule: Schedule, lam: Array, x: Tensor) -> tuple[Tensor, Tensor]:
    t = schedule.t_of_lam(lam)
    return column(schedule.alpha(t), x), column(schedule.sigma(t), x)


def _first(schedule: Schedule, x: Tensor, e: Tensor, lam: Array, h: Array) -> Tensor:
    """Eq. (3.7): first order from lam to lam + h."""
    (a, _), (a_t, s_t) = _levels(schedule, lam, x), _levels(schedule, lam + h, x)
    return a_t / a * x - s_t * column(np.expm1(h), x) * e


def pair_12(denoiser: Denoiser, x: Tensor, lam: Array, h: Array, cond: Cond) -> tuple[Tensor, Tensor]:
    """DPM-Solver-1 and DPM-Solver-2 (r_1 = 1/2) over a step h: two calls."""
    schedule, r1 = denoiser.schedule, 1 / 2
    e = denoiser.at_each(x, schedule.t_of_lam(lam), "noise", cond)
    low = _first(schedule, x, e, lam, h)
    e1 = denoiser.at_each(_first(schedule, x, e, lam, r1 * h), schedule.t_of_lam(lam + r1 * h), "noise", cond)
    _, s_t = _levels(schedule, lam + h, x)
    return low, low - s_t * column(np.expm1(h) / (2 * r1), x) * (e1 - e)


def pair_23(denoiser: Denoiser, x: Tensor, lam: Array, h: Array, cond: Cond) -> tuple[Tensor, Tensor]:
    """DPM-Solver-2 with r_1 = 1/3 and DPM-Solver-3 (r_1 = 1/3, r_2 = 2/3) over a step h: three calls."""
    schedule, r1, r2 = denoiser.schedule, 1 / 3, 2 / 3
    e = denoiser.at_each(x, schedule.t_of_lam(lam), "noise", cond)
    e1 = denoiser.at_each(_first(schedule, x, e, lam, r1 * h), schedule.t_of_lam(lam + r1 * h), "noise", cond)
    first = _first(schedule, x, e, lam, h)
    _, s_t = _levels(schedule, lam + h, x)
    low = first - s_t * column(np.expm1(h) / (2 * r1), x) * (e1 - e)
    _, s_2 = _levels(schedule, lam + r2 * h, x)
    phi = np.expm1(r2 * h) / (r2 * h) - 1
    x2 = _first(schedule, x, e, lam, r2 * h) - s_2 * column(r2 / r1 * phi, x) * (e1 - e)
    e2 = denoiser.at_each(x2, schedule.t_of_lam(lam + r2 * h), "noise", cond)
    return low, first - s_t * column((np.expm1(h) / h - 1) / r2, x) * (e2 - e)


PAIRS = {2: pair_12, 3: pair_23}


def _error(low: Tensor, high: Tensor, x_prev: Tensor, options: Mapping[str, Option]) -> Array:
    """Root mean square of high - low in units of the tolerance, of each sample or one for all: (B,)."""
    tolerance = torch.clamp(float(options["rtol"]) * torch.maximum(low.abs(), x_prev.abs()), min=float(options["atol"]))
    square = ((high - low) / tolerance).square().flatten(1).mean(1).double().cpu().numpy()
    if options["joint"]:
        square = np.full_like(square, square.max() if options["control"] == "official" else square.mean())
    return np.asarray(np.sqrt(square))


def official(error: Array, h: Array, step: Array, order: int) -> tuple[NDArray[np.bool_], Array]:
    """Accept an error of at most 1; the next step is theta times the step taken times E^(-1/order), theta = 0.9."""
    with np.errstate(divide="ignore"):
        return error <= 1, 0.9 * step * error ** (-1 / order)


def integral(error: Array, h: Array, step: Array, order: int) -> tuple[NDArray[np.bool_], Array]:
    """k-diffusion's: 1 + atan(E^(-1/order) - 1), accepted from 0.81 on, scales the step that was proposed."""
    factor = 1 + np.arctan((error + 1e-8) ** (-1 / order) - 1)
    return factor >= 0.81, h * factor


CONTROLLERS = {"official": official, "integral": integral}
DEFAULTS: Mapping[str, Option] = MappingProxyType({
    "rtol": 0.05, "atol": 0.0078, "h_init": 0.05, "control": "official", "joint": False, "denoise_to_zero": False,
})  # fmt: skip


@dataclass(frozen=True)
class AdaptiveMethod:
    """What Method is to a plan: builds an Adaptive."""

    name: str
    order: int

    adaptive = True
    learns = False
    note = "official: joint=True, one step for the batch; by default each sample has its own"
    defaults = DEFAULTS

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
    ) -> Adaptive:
        """The sampler between two times; raises BudgetError when it is given a budget or a grid."""
        if nfe is not None or grid is not None or times is not None:
            raise BudgetError(f"{self.name} chooses its own steps: it takes no nfe, grid or times, but rtol and atol")
        resolved = resolve(self.name, self.defaults, options)
        for name in ("rtol", "atol", "h_init"):
            if not 0 < float(resolved[name]) < np.inf:
                raise ValueError(f"{self.name}: {name}={resolved[name]} must be positive and finite")
        check_word(self.name, "control", str(resolved["control"]), CONTROLLERS)
        start = schedule.t_max if t_start is None else t_start
        ends = explicit(schedule, (start, schedule.t_end if t_end is None else t_end))
        if not np.isfinite(ends.lam).all():
            raise ValueError(f"{self.name} needs a finite lambda at both ends, and at {ends.times} it is {ends.lam}")
        times = (*ends.times, 0.0) if resolved["denoise_to_zero"] else ends.times
        return Adaptive(self.name, tuple(resolved.items()), self.order, schedule, times)


dpm_solver_12 = AdaptiveMethod("dpm_solver_12", 2)
dpm_solver_23 = AdaptiveMethod("dpm_solver_23", 3)
