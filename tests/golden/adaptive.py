"""Recordings of k-diffusion's adaptive DPM-Solver."""

import solvers
from tests.golden import Case


def adaptive(case: Case) -> solvers.Procedure:
    name = "dpm_solver_12" if "adaptive2" in case.id else "dpm_solver_23"
    options = {k: case.options[k] for k in ("rtol", "atol", "h_init")}
    start, *_, end = case.times
    return solvers.plan(name, case.schedule, t_start=start, t_end=end, control="integral", joint=True, **options)


PLANS = {"kd-dpm_adaptive": adaptive}
EXPLAINED: dict[str, str] = {}
