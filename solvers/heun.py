"""Heun's method in EDM's coordinates.  Karras et al. 2022, arXiv 2206.00364, Algorithm 1, and 2 with churn.

With y = x/alpha and u = sigma/alpha the ODE of every schedule is dy/du = eps: a trapezoid step in u, at two calls.
    Euler:  y' = y + (u' - u) e         Heun:  y' = y + (u' - u) (e + e')/2
The last step is Euler's when it lands on the data, where there is no noise left to predict: 2N - 1 calls for N steps.

Churn is off by default.  The paper's stochastic sampler is s_churn=40, s_tmin=0.05, s_tmax=50, s_noise=1.003 for its
own ImageNet-64 model and s_churn=30, s_tmin=0.01, s_tmax=1, s_noise=1.007 for CIFAR-10 (Table 5, VP).
"""

from solvers.grid import Grid
from solvers.karras import GRIDS, S_TMAX, Churn, along
from solvers.tracer import Tracer, solver


@solver("heun", order=2, predicts="noise", grids=GRIDS)
def heun(
    p: Tracer, grid: Grid, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = S_TMAX, s_noise: float = 1.0
) -> None:
    churn = Churn("heun", s_churn, s_tmin, s_tmax, s_noise)
    x = p.start()
    for i in range(grid.steps):
        x, at = churn(p, grid, i, x)
        e = p.model_at(x, at.t)
        alpha, u = grid.alpha[i + 1], grid.u[i + 1]
        euler = p.state(along(e, x, at, alpha, u))
        if u == 0:
            return
        x = p.state(along(0.5 * (e + p.model(euler, i + 1)), x, at, alpha, u))
