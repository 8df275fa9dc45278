"""SDE-DPM-Solver++(2M): multistep on the reverse SDE, data prediction.  Lu et al. 2022, arXiv 2211.01095.

As in diffusers.  Of second order in the distribution that it samples; its first order is DDIM with eta = 1.  In EDM's
coordinates it is k-diffusion's dpmpp_2m_sde, but for the rules of the last steps.
"""

from solvers.dpm_solver_steps import LOWER_ORDER_FINAL, multistep
from solvers.grid import Grid
from solvers.tracer import Tracer, check_word, solver


@solver("dpmpp_sde_2m", order=2, predicts="data", grids={"*": "logsnr", "RectifiedFlow": "uniform"})
def dpmpp_sde_2m(p: Tracer, grid: Grid, solver_type: str = "midpoint", lower_order_final: str = "below_15") -> None:
    check_word("dpmpp_sde_2m", "solver_type", solver_type, ("midpoint", "heun"))
    check_word("dpmpp_sde_2m", "lower_order_final", lower_order_final, LOWER_ORDER_FINAL)
    multistep(p, grid, 2, lower_order_final, taylor=solver_type == "heun", sde=True)
