"""diffusers:<Scheduler>: a scheduler of the diffusers library, its steps recorded once and run as a plan.

Recorded in float64; the sigmas that some schedulers keep in float32 leave a relative 1e-7 in the coefficients.  Calls
are made at the scheduler's own timesteps, which some round to whole labels, away from the level of the state: that is
what their pipelines hand to the network.
"""

import inspect
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import isfinite
from types import MappingProxyType
from typing import Any

import diffusers
import numpy as np

from solvers.diffusers_record import Float64, NotLinearError, record
from solvers.model import PREDICTION_TYPES, Prediction, conversion
from solvers.plan import Combine, Evaluate, Instruction, Option, Plan
from solvers.registry import did_you_mean
from solvers.schedule import RectifiedFlow, Schedule, VPCosine, VPDiscrete, VPLinear
from solvers.tracer import BudgetError, resolve

PREFIX = "diffusers:"
N = 1000  # labels that stand for the times of a continuous schedule
# What the schedule decides, so that no option may.
OF_SCHEDULE = {"beta_start", "beta_end", "beta_schedule", "trained_betas", "num_train_timesteps", "use_flow_sigmas",
               "rescale_betas_zero_snr"}  # fmt: skip
# Nominal orders of the schedulers without a solver_order; that of the others is 1.
ORDERS = {"HeunDiscreteScheduler": 2, "KDPM2DiscreteScheduler": 2, "FlowMatchHeunDiscreteScheduler": 2,
          "PNDMScheduler": 4, "LMSDiscreteScheduler": 4}  # fmt: skip


@dataclass(frozen=True)
class DiffusersMethod:
    """A solver called "diffusers:" and a scheduler's class; its options are the scheduler's fields and its step's."""

    name: str
    scheduler: type

    note = "as diffusers has it, but in float64"
    adaptive = False
    learns = False

    @property
    def summary(self) -> str:
        return f"{self.scheduler.__name__} of diffusers {diffusers.__version__}, recorded as a plan"

    def order(self, options: Mapping[str, Option]) -> int:
        """The order that the scheduler's documentation gives it."""
        return int(options.get("solver_order", ORDERS.get(self.scheduler.__name__, 1)))

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of the scheduler's config, with their defaults."""
        return _parameters(self.scheduler)

    @property
    def defaults(self) -> dict[str, Option]:
        every = _parameters(getattr(self.scheduler, "step", None)) | self.fields
        return {k: v for k, v in every.items() if _is_option(v) and k not in {*OF_SCHEDULE, "return_dict"}}

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
        """The plan of exactly `nfe` calls.

        Raises BudgetError for a budget that no number of steps spends, ValueError for a grid, for a schedule or
        options that the scheduler cannot take, and for a scheduler that is not linear.
        """
        if (grid, times, t_start, t_end) != (None, None, None, None):
            raise ValueError(f"{self.name} places its own steps: it takes no grid or times, but options of its own")
        if isinstance(nfe, bool) or not isinstance(nfe, int) or nfe < 1:
            raise BudgetError(f"nfe must be a whole number of network calls >= 1, not {nfe!r}")
        given = self._given(schedule)
        resolved = resolve(self.name, self.defaults | {k: v for k, v in given.items() if k in self.defaults}, options)
        config = given | {k: v for k, v in resolved.items() if k in self.fields}
        try:
            return self._plan(schedule, nfe, resolved, config)
        except NotLinearError:
            on = [k for k, v in resolved.items() if v is True and k in ("clip_sample", "thresholding")]
            hint = f": set {'=False, '.join(on)}=False" if on else ""
            raise ValueError(f"{self.name} is not linear, so it is no plan{hint}") from None
        except BudgetError:
            raise
        except Exception as error:  # a scheduler's own code may fail in any way
            raise ValueError(f"{self.name}: {error}") from error

    def _given(self, schedule: Schedule) -> dict[str, Any]:
        """The fields that tell the scheduler the schedule."""
        if "trained_betas" in self.fields and isinstance(schedule, VPLinear | VPCosine | VPDiscrete):
            betas = list(schedule.betas) if isinstance(schedule, VPDiscrete) else _betas(schedule)
            return {"trained_betas": betas, "num_train_timesteps": len(betas)}
        if isinstance(schedule, RectifiedFlow) and "use_flow_sigmas" in self.fields:
            return {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": schedule.shift}
        if isinstance(schedule, RectifiedFlow) and self.scheduler.__name__.startswith("FlowMatch"):
            return {"shift": schedule.shift}
        kinds = "a scheduler with betas runs on VP schedules, one for flows on RectifiedFlow"
        raise ValueError(f"{self.name} cannot be given {type(schedule).__name__}: {kinds}")

    def _plan(self, schedule: Schedule, nfe: int, resolved: Mapping[str, Option], config: Mapping[str, Any]) -> Plan:
        with Float64():
            scheduler = self.scheduler(**config)
        train = scheduler.config.num_train_timesteps
        steps = self._spend(nfe, scheduler, train)
        first = 0 if isinstance(schedule, RectifiedFlow) else 1  # label n is t_max (n + 1)/N, in a flow n/N
        times = [schedule.t_max * (float(n) + first) / train for n in _ready(scheduler, steps).timesteps]
        step_options = {k: v for k, v in resolved.items() if k not in config}
        program = record(lambda: _ready(scheduler, steps), step_options, times)
        predicts = PREDICTION_TYPES[str(config.get("prediction_type", "flow_prediction"))]
        grid = sorted({*times, _end(program, schedule, predicts, schedule.t_max / train)}, reverse=True)
        return Plan(
            self.name, tuple(resolved.items()), self.order(resolved), predicts, schedule, tuple(grid), tuple(program)
        )

    def _spend(self, nfe: int, scheduler: Any, most: int) -> int:
        """The number of steps that makes `nfe` calls; raises BudgetError naming the nearest when there is none."""

        def calls(steps: int) -> int:
            try:
                return len(_ready(scheduler, steps).timesteps)
            except Exception:  # too few for a start of several steps
                return 0

        steps = bisect_left(range(1, min(nfe, most)), nfe, key=calls) + 1  # a step costs a call at least
        if calls(steps) == nfe:
            return steps
        near = sorted({calls(s) for s in range(max(1, steps - 2), min(steps + 20, most + 1))} - {0})[:5]
        if not near:
            _ready(scheduler, steps)  # raises what is wrong with it
        raise BudgetError(f"{self.name} cannot spend {nfe} calls: it can spend {', '.join(map(str, near))} ...")


def _ready(scheduler: Any, steps: int) -> Any:
    """A copy of the scheduler about to make the first of so many steps."""
    fresh = deepcopy(scheduler)  # set_timesteps leaves state behind, and may change the config
    with Float64():
        fresh.set_timesteps(steps)
    if hasattr(fresh, "set_begin_index"):  # by index: two timesteps may be the same
        fresh.set_begin_index(0)
    return fresh


def of(name: str) -> DiffusersMethod:
    """The solver of that name, such as "diffusers:DDIMScheduler"; raises UnknownNameError."""
    known = [n for n in dir(diffusers) if n.endswith("Scheduler")]
    if (scheduler := name.removeprefix(PREFIX)) not in known:
        raise did_you_mean("diffusers scheduler", scheduler, known)
    return DiffusersMethod(name, getattr(diffusers, scheduler))


def _betas(schedule: VPLinear | VPCosine) -> list[float]:
    """The betas of the schedule's levels at N equally spaced times."""
    log_alpha = schedule.log_alpha(np.linspace(0, schedule.t_max, N + 1))
    betas: list[float] = (-np.expm1(2 * np.diff(log_alpha))).tolist()
    return betas


def _parameters(f: Any) -> dict[str, Any]:
    return {k: p.default for k, p in inspect.signature(f).parameters.items()} if f else {}


def _is_option(value: Any) -> bool:
    return isinstance(value, bool | int | str) or (isinstance(value, float) and isfinite(value))


def _end(program: Sequence[Instruction], schedule: Schedule, predicts: Prediction, first: float) -> float:
    """Where the program ends: 0, the data, or the first label's time, by the alpha of the sample it makes.

    That is what it makes of the single data point 1 without noise, where every state is its own alpha.
    """
    call = next(i for i in program if isinstance(i, Evaluate))
    values = {call.state: float(schedule.alpha(call.t))}
    for i in program[program.index(call) :]:
        if isinstance(i, Evaluate):
            alpha = float(schedule.alpha(i.t))
            A, B = conversion("data", predicts, alpha, float(schedule.sigma(i.t)))
            values[i.out] = A + B * alpha
        elif isinstance(i, Combine):
            values[i.out] = sum(c * values[r] for c, r in i.terms if isinstance(c, float))
    return 0.0 if values[program[-1].out] > (1 + float(schedule.alpha(first))) / 2 else first
