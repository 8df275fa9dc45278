"""DPM-Solver-2 in EDM's coordinates: a midpoint step, two calls.  Lu et al. 2022, arXiv 2206.00927, Algorithm 1.

With y = x/alpha, u = sigma/alpha and e_m the noise predicted at u_m, between u and u':
    y_m = y + (u_m - u) e         y' = y + (u' - u) (e_m/(2r) + (1 - 1/(2r)) e)
Three midpoints are in use: "geometric", u_m = u'^r u^(1-r), of k-diffusion (r = 1/2) and diff-sampler; "arithmetic",
u_m = (1-r) u + r u', of EDM's second-order family (Karras et al. 2022, arXiv 2206.00364, Algorithm 3, alpha = r); and
"cube_root", the arithmetic one in u^(1/3), of the consistency models' code.  A step onto the data is Euler's, at one
call, except with "cube_root", whose official code calls the network below the end of the grid.
"""

from solvers.grid import Grid
from solvers.karras import GRIDS, S_TMAX, Churn, along, level_of
from solvers.tracer import Tracer, check_word, solver

MIDPOINTS = {
    "geometric": lambda u, v, r: u ** (1 - r) * v**r,
    "arithmetic": lambda u, v, r: (1 - r) * u + r * v,
    "cube_root": lambda u, v, r: ((1 - r) * u ** (1 / 3) + r * v ** (1 / 3)) ** 3,
}


@solver("dpm_2", order=2, predicts="noise", grids=GRIDS)
def dpm_2(
    p: Tracer,
    grid: Grid,
    r: float = 0.5,
    midpoint: str = "geometric",
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = S_TMAX,
    s_noise: float = 1.0,
) -> None:
    if not 0 < r <= 1:
        raise ValueError(f"dpm_2: r={r} must lie in (0, 1]")
    check_word("dpm_2", "midpoint", midpoint, MIDPOINTS)
    churn = Churn("dpm_2", s_churn, s_tmin, s_tmax, s_noise)
    x = p.start()
    for i in range(grid.steps):
        x, at = churn(p, grid, i, x)
        e = p.model_at(x, at.t)
        alpha, u = grid.alpha[i + 1], grid.u[i + 1]
        if u == 0 and midpoint != "cube_root":
            p.state(along(e, x, at, alpha, u))
            return
        mid = level_of(grid, MIDPOINTS[midpoint](at.u, u, r))
        e_mid = p.model_at(p.state(along(e, x, at, mid.alpha, mid.u)), mid.t)
        x = p.state(along(1 / (2 * r) * e_mid + (1 - 1 / (2 * r)) * e, x, at, alpha, u))
