"""iPNDM: PNDM without its start, orders 1, 2, 3, 4, one call a step.  Zhang & Chen 2022, arXiv 2204.13902, Appendix H.

ipndm keeps the weights of equal steps on any grid, which is second order at best where the steps are unequal; ipndm_v
has those of the grid's own steps in u = sigma/alpha.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from solvers.dpm_solver_steps import order_at
from solvers.exponential import lagrange_integrals
from solvers.grid import Grid
from solvers.plan import Option
from solvers.pndm import ADAMS_BASHFORTH, mix, transfer
from solvers.schedule import Array
from solvers.tracer import Symbol, Tracer, solver

Weights = Callable[[int, int], Sequence[float] | Array]
GRIDS = {"EDM": "karras"}


def multistep(p: Tracer, grid: Grid, order: int, weights: Weights, lower_order_final: str = "never") -> None:
    """One call a step: DDIM's map of the last n outputs, weighted by weights(i, n), whose sum is 1, at step i."""
    x, e = p.start(), list[Symbol]()
    for i in range(grid.steps):
        e = [p.model(x, i), *e[: order - 1]]
        w = weights(i, order_at(i, grid, order, lower_order_final))
        x = p.state(transfer(grid.schedule, x, mix(e, w), grid.times[i], grid.times[i + 1]))


def check_order(method: str, order: int, low: int, high: int) -> None:
    if not low <= order <= high:
        raise ValueError(f"{method}: order={order} must be {low}, ..., or {high}")


@solver(
    "ipndm",
    order=lambda o: min(int(o["order"]), 2),
    nominal=lambda o: int(o["order"]),
    predicts="noise",
    grids=GRIDS,
)
def ipndm(p: Tracer, grid: Grid, order: int = 4) -> None:
    check_order("ipndm", order, 1, 4)
    multistep(p, grid, order, lambda i, n: ADAMS_BASHFORTH[n])


def variable_order(options: Mapping[str, Option]) -> int:
    """The order asked for; diff-sampler's order 4 shows 2, or 3 where log u is equally spaced."""
    return 2 if options["official"] and options["order"] == 4 else int(options["order"])


@solver(
    "ipndm_v",
    order=variable_order,
    predicts="noise",
    grids=GRIDS,
    note="official: diff-sampler's weights at orders 3 and 4 are not Adams-Bashforth's, and its published numbers are "
    "theirs; official=True: those weights",
)
def ipndm_v(p: Tracer, grid: Grid, order: int = 4, official: bool = False) -> None:
    check_order("ipndm_v", order, 1, 4)
    u = grid.u

    def weights(i: int, n: int) -> Array:
        if official:
            return diff_sampler(u[i + 1 - n : i + 2][::-1])
        mean: Array = lagrange_integrals(u[i + 1 - n : i + 1][::-1], u[i], u[i + 1]) / (u[i + 1] - u[i])
        return mean

    multistep(p, grid, order, weights)


def diff_sampler(u: Array) -> Array:
    """diff-sampler's weights of the outputs at u[1], u[2], ... for the step from u[1] to u[0].

    They would be Adams-Bashforth's with T = (1 - h/(3 (h + h1)))/2 h (h + h1)/(h1 (h1 + h2)), a minus inside W, and
    h2/h3 in place of the last h1/h2.
    """
    h, h1, h2, h3 = [*(u[:-1] - u[1:]), np.inf, np.inf, np.inf][:4]
    weights = np.array([1.0, 0.0, 0.0, 0.0])
    if len(u) > 2:
        weights[:2] += np.array([1, -1]) * h / (2 * h1)
    if len(u) > 3:
        T = (1 - h**2 / (3 * h1 * (h1 + h2))) / 2
        weights[:3] += T * np.array([1, -(1 + h1 / h2), h1 / h2])
    if len(u) > 4:
        W = (1 - h / (3 * (h + h1))) / 2 + (1 - h / (2 * (h + h1))) * h / (6 * (h + h1 + h2))
        W *= h * (h + h1) * (h + h1 + h2) / (h1 * (h1 + h2) * (h1 + h2 + h3))
        q = h1 * (h1 + h2) / (h2 * (h2 + h3))
        weights += W * np.array([1, -(1 + h1 / h2 + q), h1 / h2 + q * (1 + h2 / h3), -q * h1 / h2])
    return weights[: len(u) - 1]
