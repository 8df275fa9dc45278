"""Euler's method in EDM's coordinates, with churn.  Karras et al. 2022, arXiv 2206.00364, Algorithm 2 without line 8.

Without churn it is DDIM.  The options have k-diffusion's names.
"""

from solvers.grid import Grid
from solvers.karras import GRIDS, S_TMAX, Churn, towards
from solvers.tracer import Tracer, solver


@solver("euler", order=1, predicts="data", grids=GRIDS)
def euler(
    p: Tracer, grid: Grid, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = S_TMAX, s_noise: float = 1.0
) -> None:
    churn = Churn("euler", s_churn, s_tmin, s_tmax, s_noise)
    x = p.start()
    for i in range(grid.steps):
        x, at = churn(p, grid, i, x)
        x = p.state(towards(p.model_at(x, at.t), x, at, grid.alpha[i + 1], grid.u[i + 1]))
