"""Recordings of DPM-Solver-v3, on the model statistics that they were made with."""

from functools import cache

import numpy as np

import solvers
from solvers.dpm_solver_v3 import dpm_solver_v3
from solvers.grid import explicit
from solvers.learned import Cost, Learned
from solvers.schedule import Array, Schedule
from tests.golden import HERE, Case


@cache
def recorded() -> dict[str, Array]:
    return dict(np.load(HERE / "ems.npz"))


def learned(schedule: Schedule, arrays: dict[str, Array]) -> Learned:
    """These arrays as if they had been learned for the mixture."""
    return Learned("dpm_solver_v3", "gmm", "", schedule, None, 1.0, "", "", 0, {}, Cost(), (), {}, arrays)


def statistics(case: Case) -> Learned:
    """The recorded l, s, b at their nodes, uniform in lambda."""
    given = case.options
    name = given["ems_file"].removeprefix("ems.").removesuffix(".seed0.npz")
    first, last = case.schedule.lam([given["t_start"], given["t_end"]])
    nodes = np.linspace(first, last, given["statistics_steps"] + 1)
    return learned(case.schedule, {"lam": nodes} | {k: recorded()[f"{name}/{k}"] for k in "lsb"})


def v3(case: Case) -> solvers.Plan:
    given = case.options
    options: dict[str, solvers.Option] = {
        "order": given["order"],
        "p_pseudo": given["p_pseudo"],
        "corrector": given["use_corrector"],
        "c_pseudo": given["c_pseudo"],
        "half": given["half"],
        "lower_order_final": "always" if given["lower_order_final"] else "never",
        "degenerate": given["degenerated"],
    }
    return dpm_solver_v3.on(explicit(case.schedule, case.times), options, statistics(case))


PLANS = {"v3-": v3}
EXPLAINED: dict[str, str] = {}
