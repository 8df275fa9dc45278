"""DEIS: the predicted noise as a polynomial under the exact integral.  Zhang & Chen 2022, arXiv 2204.13902, Eq. (14).

In y = x/alpha and u = sigma/alpha (the paper's rho), where dy/du = eps,
    y' = y + sum_j e_j int_u^u' L_j(theta) du,        L_j the Lagrange polynomials of the last outputs' theta
and the multistep variants differ in theta, in which the noise is taken for a polynomial:
    deis_tab0 ... deis_tab3  the schedule's own time t, of order 0 (DDIM) to 3; EDM, whose t is sigma, has the time that
                             its VP schedule gives to sigma/alpha, as in diff-sampler
    deis_rhoab               u itself: Adams-Bashforth with the grid's own steps
    deis_logrho              log u, as in diffusers, where order k has k outputs, elsewhere k + 1
deis_rhork2, 3 and 4 are the classical Runge-Kutta methods (Heun, Kutta, Runge) in u; a step onto the data, where there
is no noise left to predict, is DDIM's.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from solvers.dpm_solver_steps import LOWER_ORDER_FINAL
from solvers.exponential import NODES, WEIGHTS, lagrange
from solvers.grid import Grid
from solvers.ipndm import Weights, check_order, multistep
from solvers.pndm import NO_SIGNAL, mix, transfer
from solvers.schedule import EDM, Array, Schedule, VPLinear
from solvers.tracer import Tracer, check_word, solver

GRIDS = {"*": "quadratic", "EDM": "karras", "RectifiedFlow": "uniform"}
STAGE_GRIDS = GRIDS | {"RectifiedFlow": "logsnr"}  # as for PNDM's starts


def time_of(schedule: Schedule) -> Callable[[Array], Array]:
    """t as a function of u."""
    if isinstance(schedule, EDM):  # Karras et al. 2022, arXiv 2206.00364, Appendix C.1, where u runs from 0.002 to 80
        low, high, t_end = np.log1p(0.002**2), np.log1p(80.0**2), 1e-3
        slope = 2 * (high - low / t_end) / (1 - t_end)
        schedule = VPLinear(float(high - slope / 2), float(high + slope / 2))
    return lambda u: schedule.t_of_lam(-np.log(u))


def exact(grid: Grid, theta: Callable[[Array], ArrayLike]) -> Weights:
    """Mean over the step of L_j(theta), for the last n outputs; integrated over log u, in which all is smooth."""

    def weights(i: int, n: int) -> Array:
        if n == 1:
            return np.ones(1)
        u, start, end = grid.u[i + 1 - n : i + 1][::-1], np.log(grid.u[i]), np.log(grid.u[i + 1])
        inner = np.exp(start + (end - start) * (NODES + 1) / 2)
        measure = WEIGHTS / 2 * (end - start) * inner / (grid.u[i + 1] - grid.u[i])
        origin, *nodes = np.asarray(theta(u))
        scale = nodes[-1] - origin
        at = (np.asarray(theta(inner)) - origin) / scale
        return np.asarray(lagrange([0, *((nodes - origin) / scale)], at) @ measure)

    return weights


def tab(p: Tracer, grid: Grid, order: int) -> None:
    multistep(p, grid, order + 1, exact(grid, time_of(grid.schedule)))


@solver("deis_tab0", order=1, predicts="noise", grids=GRIDS)
def deis_tab0(p: Tracer, grid: Grid) -> None:
    tab(p, grid, 0)


@solver("deis_tab1", order=2, predicts="noise", grids=GRIDS)
def deis_tab1(p: Tracer, grid: Grid) -> None:
    tab(p, grid, 1)


@solver("deis_tab2", order=3, predicts="noise", grids=GRIDS)
def deis_tab2(p: Tracer, grid: Grid) -> None:
    tab(p, grid, 2)


@solver("deis_tab3", order=4, predicts="noise", grids=GRIDS)
def deis_tab3(p: Tracer, grid: Grid) -> None:
    tab(p, grid, 3)


@solver("deis_rhoab", order=lambda o: int(o["order"]) + 1, predicts="noise", grids=GRIDS)
def deis_rhoab(p: Tracer, grid: Grid, order: int = 2) -> None:
    check_order("deis_rhoab", order, 0, 3)
    multistep(p, grid, order + 1, exact(grid, lambda u: u))


@solver("deis_logrho", order=lambda o: int(o["order"]), predicts="noise", grids=GRIDS | {"VPDiscrete": "linspace"})
def deis_logrho(p: Tracer, grid: Grid, order: int = 2, lower_order_final: str = "below_15") -> None:
    check_order("deis_logrho", order, 1, 3)
    check_word("deis_logrho", "lower_order_final", lower_order_final, LOWER_ORDER_FINAL)
    multistep(p, grid, order, exact(grid, np.log), lower_order_final)


def runge_kutta(p: Tracer, grid: Grid, stages: list[tuple[float, ...]], b: tuple[float, ...]) -> None:
    """An explicit method in u; each stage is the row of its tableau, whose sum is where in the step it lies."""
    x, u, schedule = p.start(), grid.u, grid.schedule
    if np.isinf(u[0]):
        raise ValueError(NO_SIGNAL.format(grid.times[0]))
    for i in range(grid.steps):
        t, s = grid.times[i], grid.times[i + 1]
        e = [p.model(x, i)]
        for row in stages if s > 0 else []:
            c = sum(row)
            inner = s if c == 1 else float(schedule.t_of_lam(-np.log(u[i] + c * (u[i + 1] - u[i]))))
            e.append(p.model_at(transfer(schedule, x, mix(e, np.array(row) / c), t, inner), inner))
        x = p.state(transfer(schedule, x, mix(e, b) if s > 0 else e[0], t, s))


@solver("deis_rhork2", order=2, predicts="noise", grids=STAGE_GRIDS)
def deis_rhork2(p: Tracer, grid: Grid) -> None:
    runge_kutta(p, grid, [(1.0,)], (1 / 2, 1 / 2))


@solver("deis_rhork3", order=3, predicts="noise", grids=STAGE_GRIDS)
def deis_rhork3(p: Tracer, grid: Grid) -> None:
    runge_kutta(p, grid, [(1 / 2,), (-1.0, 2.0)], (1 / 6, 4 / 6, 1 / 6))


@solver("deis_rhork4", order=4, predicts="noise", grids=STAGE_GRIDS)
def deis_rhork4(p: Tracer, grid: Grid) -> None:
    runge_kutta(p, grid, [(1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)], (1 / 6, 2 / 6, 2 / 6, 1 / 6))
