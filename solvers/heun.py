"""Heun's method in EDM's coordinates.  Karras et al. 2022, arXiv 2206.00364, Algorithm 1 (deterministic).

With y = x/alpha and u = sigma/alpha the ODE of every schedule is dy/du = eps: a trapezoid step in u, at two calls.
    Euler:  y' = y + (u' - u) e         Heun:  y' = y + (u' - u) (e + e')/2
The last step is Euler's when it lands on the data, where there is no noise left to predict: 2N - 1 calls for N steps.
"""

from solvers.grid import Grid
from solvers.tracer import Tracer, solver


@solver("heun", order=2, predicts="noise", grids={"*": "edm"})
def heun(p: Tracer, grid: Grid) -> None:
    alpha, u = grid.alpha, grid.sigma / grid.alpha
    x = p.start()
    for i in range(grid.steps):
        e = p.model(x, i)
        a, du = alpha[i + 1] / alpha[i], alpha[i + 1] * (u[i + 1] - u[i])
        euler = p.state(a * x + du * e)
        if u[i + 1] == 0:
            return
        x = p.state(a * x + du / 2 * (e + p.model(euler, i + 1)))
