"""Fast diffusion samplers as plans: numerics only, usable alone.

schedule = solvers.VPLinear()
denoiser = solvers.Denoiser(network, schedule, predicts="noise")
plan = solvers.plan("dpmpp_2m", schedule, nfe=10)
x = solvers.sample(plan, denoiser, x_T)
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from solvers.execute import sample
from solvers.learned import LearnedError
from solvers.model import Denoiser, Guidance
from solvers.plan import Option, Plan, PlanError, Procedure
from solvers.registry import Registry, UnknownNameError, did_you_mean
from solvers.schedule import EDM, RectifiedFlow, Schedule, VPCosine, VPDiscrete, VPLinear
from solvers.tracer import BudgetError, Method, Solver, Tracer, solver

if TYPE_CHECKING:
    from solvers.diffusers import PlanScheduler

METHODS = Registry(
    "solver",
    "fewstep.solvers",
    {
        "ddim": "solvers.ddim:ddim",
        "pndm_s": "solvers.pndm:pndm_s",
        "pndm_f": "solvers.pndm:pndm_f",
        "plms": "solvers.pndm:plms",
        "ipndm": "solvers.ipndm:ipndm",
        "ipndm_v": "solvers.ipndm:ipndm_v",
        "deis_tab0": "solvers.deis:deis_tab0",
        "deis_tab1": "solvers.deis:deis_tab1",
        "deis_tab2": "solvers.deis:deis_tab2",
        "deis_tab3": "solvers.deis:deis_tab3",
        "deis_rhoab": "solvers.deis:deis_rhoab",
        "deis_logrho": "solvers.deis:deis_logrho",
        "deis_rhork2": "solvers.deis:deis_rhork2",
        "deis_rhork3": "solvers.deis:deis_rhork3",
        "deis_rhork4": "solvers.deis:deis_rhork4",
        "dpm_solver_1": "solvers.dpm_solver:dpm_solver_1",
        "dpm_solver_2": "solvers.dpm_solver:dpm_solver_2",
        "dpm_solver_3": "solvers.dpm_solver:dpm_solver_3",
        "dpm_solver_fast": "solvers.dpm_solver:dpm_solver_fast",
        "dpm_solver_2m": "solvers.dpm_solver:dpm_solver_2m",
        "dpm_solver_3m": "solvers.dpm_solver:dpm_solver_3m",
        "dpm_solver_12": "solvers.dpm_solver_adaptive:dpm_solver_12",
        "dpm_solver_23": "solvers.dpm_solver_adaptive:dpm_solver_23",
        "dpmpp_2s": "solvers.dpm_solver_pp:dpmpp_2s",
        "dpmpp_3s": "solvers.dpm_solver_pp:dpmpp_3s",
        "dpmpp_2m": "solvers.dpm_solver_pp:dpmpp_2m",
        "dpmpp_3m": "solvers.dpm_solver_pp:dpmpp_3m",
        "dpmpp_sde_2m": "solvers.dpm_solver_pp_sde:dpmpp_sde_2m",
        "unipc": "solvers.unipc:unipc",
        "euler": "solvers.euler:euler",
        "heun": "solvers.heun:heun",
        "dpm_2": "solvers.dpm_2:dpm_2",
        "lms": "solvers.lms:lms",
        "euler_ancestral": "solvers.ancestral:euler_ancestral",
        "dpm_2_ancestral": "solvers.ancestral:dpm_2_ancestral",
        "dpmpp_2s_ancestral": "solvers.ancestral:dpmpp_2s_ancestral",
        "dpmpp_sde": "solvers.k_sde:dpmpp_sde",
        "dpmpp_2m_sde": "solvers.k_sde:dpmpp_2m_sde",
        "dpmpp_3m_sde": "solvers.k_sde:dpmpp_3m_sde",
        "ghvb": "solvers.ghvb:ghvb",
        "hb": "solvers.ghvb:hb",
        "nt": "solvers.ghvb:nt",
        "bdia": "solvers.bdia:bdia",
        "flow_euler": "solvers.rectified_flow:flow_euler",
        "flow_heun": "solvers.rectified_flow:flow_heun",
        "consistency": "solvers.consistency:consistency",
        "lcm": "solvers.lcm:lcm",
        "tcd": "solvers.tcd:tcd",
        "dpm_solver_v3": "solvers.dpm_solver_v3:dpm_solver_v3",
        "dc_solver": "solvers.dc_solver:dc_solver",
        "time_shift": "solvers.time_shift:time_shift",
        "usf": "solvers.found:usf",
        "autodiffusion": "solvers.found:autodiffusion",
        "fitted": "solvers.found:fitted",
    },
)


def names() -> list[str]:
    """Every solver there is."""
    return METHODS.names()


def method(name: str) -> Solver:
    """The solver called `name`, or the one at "module:attribute" or "file.py:attribute"; raises UnknownNameError.

    "diffusers:DDIMScheduler" is that scheduler of diffusers, and so with its others.
    """
    if name.startswith("diffusers:"):
        from solvers import diffusers_method  # diffusers takes seconds to import

        return diffusers_method.of(name)
    found = METHODS.get(name)
    if not isinstance(found, Solver):
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
) -> Plan | Procedure:
    """The plan of solver `name` for exactly `nfe` calls on a grid (default: its authors'), or on explicit times.

    An adaptive solver takes neither and gives a Procedure, which `sample` runs like a plan.

    Raises UnknownNameError, BudgetError when the method cannot spend that budget, and ValueError for options it lacks.
    """
    return method(name).build(schedule, nfe, grid, times, t_start, t_end, options)


def to_diffusers(plan: Plan, prediction_type: str | None = None, sigma_data: float = 0.5) -> "PlanScheduler":
    """The plan as a scheduler for the pipelines of diffusers; see solvers/diffusers.py."""
    from solvers.diffusers import to_diffusers

    return to_diffusers(plan, prediction_type, sigma_data)


__all__ = [
    "EDM",
    "METHODS",
    "BudgetError",
    "Denoiser",
    "Guidance",
    "LearnedError",
    "Method",
    "Option",
    "Plan",
    "PlanError",
    "Procedure",
    "RectifiedFlow",
    "Registry",
    "Schedule",
    "Solver",
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
    "to_diffusers",
]
