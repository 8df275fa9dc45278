"""DPM-Solver: exponential integrators of the noise prediction.  Lu et al. 2022, arXiv 2206.00927, Algorithms 1 and 2.

The formulas, and the official rules for the last steps, are in dpm_solver_steps.py.  The paper's solvers are
singlestep; the multistep ones are the official code's.
"""

from solvers.dpm_solver_steps import LOWER_ORDER_FINAL, SOLVER_TYPES, multistep, singlestep
from solvers.grid import Grid
from solvers.tracer import Tracer, check_unit, check_word, solver


@solver("dpm_solver_1", order=1, predicts="noise", grids={"*": "logsnr"})
def dpm_solver_1(p: Tracer, grid: Grid) -> None:
    singlestep(p, grid, 1, "dpmsolver")


@solver("dpm_solver_2", order=2, predicts="noise", grids={"*": "logsnr_2"})
def dpm_solver_2(p: Tracer, grid: Grid, solver_type: str = "dpmsolver", lower_order_final: str = "never") -> None:
    check_word("dpm_solver_2", "solver_type", solver_type, SOLVER_TYPES)
    check_word("dpm_solver_2", "lower_order_final", lower_order_final, LOWER_ORDER_FINAL)
    singlestep(p, grid, 2, solver_type, lower_order_final)


@solver("dpm_solver_3", order=3, predicts="noise", grids={"*": "logsnr_3"})
def dpm_solver_3(p: Tracer, grid: Grid, solver_type: str = "dpmsolver", lower_order_final: str = "always") -> None:
    check_word("dpm_solver_3", "solver_type", solver_type, (*SOLVER_TYPES, "midpoint"))
    check_word("dpm_solver_3", "lower_order_final", lower_order_final, LOWER_ORDER_FINAL)
    singlestep(p, grid, 3, solver_type, lower_order_final)


@solver("dpm_solver_fast", order=3, predicts="noise", grids={"*": "logsnr_3"})
def dpm_solver_fast(p: Tracer, grid: Grid, eta: float = 0.0) -> None:
    """k-diffusion's dpm_fast: DPM-Solver-3, and with eta > 0 every update goes below its end and is noised back up."""
    check_unit("dpm_solver_fast", "eta", eta)
    singlestep(p, grid, 3, "dpmsolver", "always", eta)


@solver("dpm_solver_2m", order=2, predicts="noise", grids={"*": "logsnr"})
def dpm_solver_2m(p: Tracer, grid: Grid, solver_type: str = "dpmsolver", lower_order_final: str = "below_10") -> None:
    check_word("dpm_solver_2m", "solver_type", solver_type, SOLVER_TYPES)
    check_word("dpm_solver_2m", "lower_order_final", lower_order_final, LOWER_ORDER_FINAL)
    multistep(p, grid, 2, lower_order_final, taylor=solver_type == "taylor")


@solver(
    "dpm_solver_3m",
    order=lambda options: 3 if options["exact"] else 2,
    predicts="noise",
    grids={"*": "logsnr"},
    note="official: half the second difference that the expansion asks for, so of second order; exact=True: all of it",
)
def dpm_solver_3m(p: Tracer, grid: Grid, lower_order_final: str = "below_10", exact: bool = False) -> None:
    check_word("dpm_solver_3m", "lower_order_final", lower_order_final, LOWER_ORDER_FINAL)
    multistep(p, grid, 3, lower_order_final, second=2.0 if exact else 1.0)
