"""Fast diffusion samplers as plans: numerics only, usable alone.

schedule = solvers.VPLinear()
denoiser = solvers.Denoiser(network, schedule, predicts="noise")
plan = solvers.plan("dpmpp_2m", schedule, nfe=10)
x = solvers.sample(plan, denoiser, x_T)
"""

from collections.abc import Sequence

from solvers.execute import sample
from solvers.model import Denoiser, Guidance
from solvers.plan import Option, Plan, PlanError
from solvers.registry import Registry, UnknownNameError, did_you_mean
from solvers.schedule import EDM, RectifiedFlow, Schedule, VPCosine, VPDiscrete, VPLinear
from solvers.tracer import BudgetError, Method, Tracer, build, solver

METHODS = Registry(
    "solver",
    "fewstep.solvers",
    {
        "ddim": "solvers.ddim:ddim",
        "heun": "solvers.heun:heun",
        "dpmpp_2m": "solvers.dpm_solver_pp:dpmpp_2m",
    },
)


def names() -> list[str]:
    """Every solver there is."""
    return METHODS.names()


def method(name: str) -> Method:
    """The solver called `name`, or the one at "module:attribute" or "file.py:attribute"; raises UnknownNameError."""
    found = METHODS.get(name)
    if not isinstance(found, Method):
        raise UnknownNameError(f"{name!r} is not a solver: decorate it with @solver")
    return found


def plan(
    name: str,
    schedule: Schedule,
    nfe: int | None = None,
    *,
    grid: str | None = None,
    times: Sequence[float] | None = None,
    t_start: float | None = None,
    t_end: float | None = None,
    **options: Option,
) -> Plan:
    """The plan of solver `name` for exactly `nfe` calls on a grid (default: its authors'), or on explicit times.

    Raises UnknownNameError, BudgetError when the method cannot spend that budget, and ValueError for options it lacks.
    """
    return build(method(name), schedule, nfe, grid, times, t_start, t_end, options)


__all__ = [
    "EDM",
    "METHODS",
    "BudgetError",
    "Denoiser",
    "Guidance",
    "Method",
    "Option",
    "Plan",
    "PlanError",
    "RectifiedFlow",
    "Registry",
    "Schedule",
    "Tracer",
    "UnknownNameError",
    "VPCosine",
    "VPDiscrete",
    "VPLinear",
    "did_you_mean",
    "method",
    "names",
    "plan",
    "sample",
    "solver",
]
