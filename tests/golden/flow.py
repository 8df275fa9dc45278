"""Recordings of diffusers' flow matching: Euler and Heun."""

import solvers
from tests.golden import Case


def flow(case: Case) -> solvers.Plan:
    name = "flow_heun" if "-heun-" in case.id else "flow_euler"
    return solvers.plan(name, case.schedule, times=case.times)


PLANS = {"flow-": flow}
EXPLAINED: dict[str, str] = {}
