"""Ancestral samplers: an ODE step to less noise than asked for, then fresh noise.  arXiv 2006.11239; k-diffusion.

In EDM's coordinates, y = x/alpha and u = sigma/alpha, a step from u to u' solves the ODE to u_down and adds u_up z,
with u_down^2 + u_up^2 = u'^2 and u_up = eta u' sqrt(1 - u'^2/u^2): the marginals stay right, to the ODE step's order.
eta = 0 is the ODE's method; euler_ancestral is DDIM with the same eta.
"""

from math import sqrt

from solvers.grid import Grid
from solvers.karras import GRIDS, along, ancestral, level, level_of, towards, with_noise
from solvers.tracer import Tracer, check_unit, solver


@solver("euler_ancestral", order=1, predicts="data", grids=GRIDS)
def euler_ancestral(p: Tracer, grid: Grid, eta: float = 1.0) -> None:
    check_unit("euler_ancestral", "eta", eta)
    x = p.start()
    for i in range(grid.steps):
        at, alpha = level(grid, i), grid.alpha[i + 1]
        u_down, u_up = ancestral(at.u, grid.u[i + 1], eta)
        x = with_noise(p, towards(p.model(x, i), x, at, alpha, u_down), alpha * u_up)


@solver("dpm_2_ancestral", order=2, predicts="noise", grids=GRIDS)
def dpm_2_ancestral(p: Tracer, grid: Grid, eta: float = 1.0) -> None:
    check_unit("dpm_2_ancestral", "eta", eta)
    x = p.start()
    for i in range(grid.steps):
        at, alpha = level(grid, i), grid.alpha[i + 1]
        u_down, u_up = ancestral(at.u, grid.u[i + 1], eta)
        e = p.model(x, i)
        if u_down > 0:  # else Euler's step, onto the data
            mid = level_of(grid, sqrt(at.u * u_down))
            e = p.model_at(p.state(along(e, x, at, mid.alpha, mid.u)), mid.t)
        x = with_noise(p, along(e, x, at, alpha, u_down), alpha * u_up)


@solver("dpmpp_2s_ancestral", order=2, predicts="data", grids=GRIDS)
def dpmpp_2s_ancestral(p: Tracer, grid: Grid, eta: float = 1.0) -> None:
    """DPM-Solver++(2S), Lu et al. 2022, arXiv 2211.01095, Algorithm 1 with r = 1/2, to u_down."""
    check_unit("dpmpp_2s_ancestral", "eta", eta)
    x = p.start()
    for i in range(grid.steps):
        at, alpha = level(grid, i), grid.alpha[i + 1]
        u_down, u_up = ancestral(at.u, grid.u[i + 1], eta)
        D = p.model(x, i)
        if u_down > 0:  # else the first-order step, onto the data
            mid = level_of(grid, sqrt(at.u * u_down))  # halfway in lambda
            D = p.model_at(p.state(towards(D, x, at, mid.alpha, mid.u)), mid.t)
        x = with_noise(p, towards(D, x, at, alpha, u_down), alpha * u_up)
