"""DDIM: one step along the denoising direction.  Song et al. 2021, arXiv 2010.02502, Eq. (12) and (16).

In the data prediction D, with h = lambda' - lambda and s the standard deviation of the fresh noise:
    x' = sigma_d/sigma x - alpha' expm1(-h_d) D + s z,  sigma_d^2 = sigma'^2 - s^2,  h_d = log(alpha'/sigma_d) - lambda
which is exact at both ends of every schedule.  eta = 0 is the first-order exponential integrator of the ODE (the first
order of DPM-Solver, Euler's step of EDM); eta = 1 is DDPM's ancestral sampling.
"""

from math import expm1, log1p, sqrt

from solvers.grid import Grid
from solvers.tracer import Tracer, check_unit, solver


@solver("ddim", order=1, predicts="data", grids={"EDM": "edm"})
def ddim(p: Tracer, grid: Grid, eta: float = 0.0) -> None:
    check_unit("ddim", "eta", eta)
    alpha, sigma, lam = grid.alpha, grid.sigma, grid.lam
    x = p.start()
    for i in range(grid.steps):
        D = p.model(x, i)
        h = lam[i + 1] - lam[i]
        s = eta * sigma[i + 1] * sqrt(-expm1(-2 * h))  # Eq. (16)
        kept = eta**2 * expm1(-2 * h)  # sigma_d^2 = sigma'^2 (1 + kept)
        sigma_d, h_d = sigma[i + 1] * sqrt(1 + kept), h - 0.5 * log1p(kept) if kept > -1 else float("inf")
        x = sigma_d / sigma[i] * x - alpha[i + 1] * expm1(-h_d) * D
        x = p.state(x + s * p.noise() if s > 0 else x)
