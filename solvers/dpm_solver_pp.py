"""DPM-Solver++: exponential integrators of the data prediction.  Lu et al. 2022, arXiv 2211.01095, Algorithms 1 and 2.

The formulas, and the official rules for the last steps, are in dpm_solver_steps.py.
"""

from solvers.dpm_solver_steps import LOWER_ORDER_FINAL, SOLVER_TYPES, multistep, singlestep
from solvers.grid import Grid
from solvers.tracer import Tracer, check_word, solver


@solver("dpmpp_2s", order=2, predicts="data", grids={"*": "logsnr_2", "RectifiedFlow": "uniform"})
def dpmpp_2s(p: Tracer, grid: Grid, solver_type: str = "dpmsolver", lower_order_final: str = "never") -> None:
    check_word("dpmpp_2s", "solver_type", solver_type, SOLVER_TYPES)
    check_word("dpmpp_2s", "lower_order_final", lower_order_final, LOWER_ORDER_FINAL)
    singlestep(p, grid, 2, solver_type, lower_order_final)


@solver("dpmpp_3s", order=3, predicts="data", grids={"*": "logsnr_3", "RectifiedFlow": "uniform"})
def dpmpp_3s(p: Tracer, grid: Grid, solver_type: str = "dpmsolver", lower_order_final: str = "always") -> None:
    check_word("dpmpp_3s", "solver_type", solver_type, (*SOLVER_TYPES, "midpoint"))
    check_word("dpmpp_3s", "lower_order_final", lower_order_final, LOWER_ORDER_FINAL)
    singlestep(p, grid, 3, solver_type, lower_order_final)


@solver("dpmpp_2m", order=2, predicts="data", grids={"*": "logsnr", "RectifiedFlow": "uniform"})
def dpmpp_2m(p: Tracer, grid: Grid, solver_type: str = "dpmsolver", lower_order_final: str = "below_10") -> None:
    check_word("dpmpp_2m", "solver_type", solver_type, SOLVER_TYPES)
    check_word("dpmpp_2m", "lower_order_final", lower_order_final, LOWER_ORDER_FINAL)
    multistep(p, grid, 2, lower_order_final, taylor=solver_type == "taylor")


@solver(
    "dpmpp_3m",
    order=lambda options: 3 if options["exact"] else 2,
    predicts="data",
    grids={"*": "logsnr", "RectifiedFlow": "uniform"},
    note="official: half the second difference that the expansion asks for, so of second order; exact=True: all of it",
)
def dpmpp_3m(p: Tracer, grid: Grid, lower_order_final: str = "below_10", exact: bool = False) -> None:
    check_word("dpmpp_3m", "lower_order_final", lower_order_final, LOWER_ORDER_FINAL)
    multistep(p, grid, 3, lower_order_final, second=2.0 if exact else 1.0)
