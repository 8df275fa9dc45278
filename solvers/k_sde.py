"""DPM-Solver++ for the reverse SDE.  Lu et al. 2022, arXiv 2211.01095, Section 6; Crowson 2022, k-diffusion.

In EDM's coordinates, y = x/alpha and u = sigma/alpha, with h = lambda' - lambda and h_eta = (1 + eta) h, the exact
solution for a constant data prediction D is
    y' = u'/u e^{-eta h} y - expm1(-h_eta) D + u' sqrt(-expm1(-2 eta h)) z.
eta = 1 is the SDE, eta = 0 the ODE; the first-order step ends on D where u' = 0.  The order declared is the ODE's at
eta = 0, and above it that of the samples' variance on a Gaussian.
"""

from math import exp, expm1, sqrt

from solvers.exponential import phi
from solvers.grid import Grid
from solvers.karras import GRIDS, ancestral, level, level_of, towards, with_noise
from solvers.tracer import Symbol, Tracer, check_unit, check_word, solver


@solver(
    "dpmpp_sde",
    order=lambda o: 1 if o["noise"] == "iid" and o["eta"] != 0 else 2,
    predicts="data",
    grids=GRIDS,
)
def dpmpp_sde(p: Tracer, grid: Grid, eta: float = 1.0, r: float = 0.5, noise: str = "brownian") -> None:
    """DPM-Solver++(2S) with an ancestral step in each of its stages; u_m lies at lambda + r h.

    noise="brownian": the two draws of a step are increments of one path over u, which share the part from u to u_m.
    noise="iid": independent draws, as where k-diffusion is given another noise sampler; they cost an order.
    """
    check_unit("dpmpp_sde", "eta", eta)
    if not 0 < r < 1:
        raise ValueError(f"dpmpp_sde: r={r} must lie in (0, 1)")
    check_word("dpmpp_sde", "noise", noise, ("brownian", "iid"))
    fresh = p.noise if eta > 0 else Symbol
    x = p.start()
    for i in range(grid.steps):
        at, alpha, u = level(grid, i), grid.alpha[i + 1], grid.u[i + 1]
        D, z = p.model(x, i), Symbol()
        if u > 0:  # else the first-order step, onto the data
            mid = level_of(grid, at.u ** (1 - r) * u**r)
            u_down, u_up = ancestral(at.u, mid.u, eta)
            z_mid = fresh()
            x_mid = p.state(towards(D, x, at, mid.alpha, u_down) + mid.alpha * u_up * z_mid)
            D = (1 - 1 / (2 * r)) * D + 1 / (2 * r) * p.model_at(x_mid, mid.t)
            shared = (at.u - mid.u) / (at.u - u) if noise == "brownian" else 0.0
            z = sqrt(shared) * z_mid + sqrt(1 - shared) * fresh()
        u_down, u_up = ancestral(at.u, u, eta)
        x = p.state(towards(D, x, at, alpha, u_down) + alpha * u_up * z)


def sde_step(p: Tracer, grid: Grid, i: int, x: Symbol, D: Symbol, eta: float) -> Symbol:
    """Step i of this module's formula."""
    h = grid.lam[i + 1] - grid.lam[i]
    eta_h = eta * h if eta > 0 else 0.0  # h is infinite at both ends
    D_part = -grid.alpha[i + 1] * expm1(-h - eta_h) * D
    x = grid.sigma[i + 1] / grid.sigma[i] * exp(-eta_h) * x + D_part
    return with_noise(p, x, grid.sigma[i + 1] * sqrt(-expm1(-2 * eta_h)))


@solver("dpmpp_2m_sde", order=2, predicts="data", grids=GRIDS)
def dpmpp_2m_sde(p: Tracer, grid: Grid, eta: float = 1.0, solver_type: str = "midpoint") -> None:
    """solver_type="heun" weighs D' as the exact solution does, "midpoint" as half the step."""
    check_unit("dpmpp_2m_sde", "eta", eta)
    check_word("dpmpp_2m_sde", "solver_type", solver_type, ("midpoint", "heun"))
    lam, sigma = grid.lam, grid.sigma
    x, D_prev = p.start(), None
    for i in range(grid.steps):
        D = D_bar = p.model(x, i)
        if D_prev is not None and sigma[i + 1] > 0:
            h = lam[i + 1] - lam[i]
            r, z = (lam[i] - lam[i - 1]) / h, -(1 + eta) * h
            weight = 0.5 if solver_type == "midpoint" else phi(2, z) / phi(1, z)
            D_bar = D + weight / r * (D - D_prev)
        x, D_prev = sde_step(p, grid, i, x, D_bar, eta), D


@solver(
    "dpmpp_3m_sde",
    order=lambda o: 3 if o["exact"] and o["eta"] == 0 else 2,
    predicts="data",
    grids=GRIDS,
    note="official: half the second derivative, so of second order; exact=True: all of it",
)
def dpmpp_3m_sde(p: Tracer, grid: Grid, eta: float = 1.0, exact: bool = False) -> None:
    check_unit("dpmpp_3m_sde", "eta", eta)
    lam, sigma = grid.lam, grid.sigma
    x = p.start()
    past: list[Symbol] = []  # data predictions, the newest last
    for i in range(grid.steps):
        D = D_bar = p.model(x, i)
        if past and sigma[i + 1] > 0:
            h = lam[i + 1] - lam[i]
            z, r_0 = -(1 + eta) * h, (lam[i] - lam[i - 1]) / h
            D_1 = (D - past[-1]) / r_0  # h D'
            if len(past) == 2:
                r_1 = (lam[i - 1] - lam[i - 2]) / h
                D_2 = (D_1 - (past[-1] - past[-2]) / r_1) / (r_0 + r_1)  # h^2 D''/2
                D_bar += (2 if exact else 1) * phi(3, z) / phi(1, z) * D_2
                D_1 += r_0 * D_2
            D_bar += phi(2, z) / phi(1, z) * D_1
        x, past = sde_step(p, grid, i, x, D_bar, eta), [*past, D][-2:]
