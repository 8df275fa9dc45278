"""Recordings of DC-Solver: its own code, and its scheduler for diffusers."""

from dataclasses import asdict

from solvers.dc_solver import Options, dc_solver
from solvers.grid import explicit
from solvers.learned import Cost, Learned
from solvers.plan import Plan
from solvers.schedule import Schedule
from tests.golden import Case


def learned(schedule: Schedule, times: list[float], ratios: list[float], options: Options) -> Learned:
    """Ratios as `fewstep tune` would have written them."""
    values = {"ratios": ratios, "times": times, "grid": "uniform", "options": asdict(options)}
    return Learned(
        method="dc_solver", checkpoint="gmm", digest="0" * 64, schedule=schedule, nfe=len(ratios), guidance=1.0,
        base="unipc", objective="", seed=0, settings={}, cost=Cost(), curve=(), values=values,
    )  # fmt: skip


def options(case: Case) -> Options:
    given = case.options
    assert given["predict_x0"]
    diffusers = "solver_type" in given
    assert not diffusers or given["disable_corrector"] == [0]
    return Options(
        order=given["solver_order"] if diffusers else int(case.id.partition("-o")[2][0]),
        variant=given["solver_type" if diffusers else "variant"],
        lower_order_final="always" if given["lower_order_final"] else "never",
        corrector_from=1 if diffusers else 0,
        dc_order=given["dc_order"],
    )


def plan(case: Case) -> Plan:
    ratios, own = case.array("dc_ratios").tolist(), options(case)
    return dc_solver.on(
        explicit(case.schedule, case.times), asdict(own), learned(case.schedule, case.times, ratios, own)
    )


PLANS = {"dc-|dcdiff-": plan}
EXPLAINED: dict[str, str] = {}
