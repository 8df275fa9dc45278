"""DPM-Solver++: exponential integrators of the data prediction.  Lu et al. 2022, arXiv 2211.01095.

Three rules are published for finishing at a lower order, which steadies the last, largest step at few calls:
the official code's below 10 steps ("below_10"), diffusers' below 15 ("below_15"), and "always" (DPM-Solver-v3's and
UniPC's code); "never" is the paper's Algorithm 2 as printed.
"""

from math import expm1

from solvers.grid import Grid
from solvers.tracer import Tracer, solver

LOWER_ORDER_FINAL = {"never": 0, "below_10": 10, "below_15": 15, "always": 10**9}


def first_order(i: int, grid: Grid, lower_order_final: str) -> bool:
    """Whether step i has no history or must not use it: warm-up, the published rule, or a step onto the data."""
    if lower_order_final not in LOWER_ORDER_FINAL:
        raise ValueError(f"lower_order_final={lower_order_final!r} is none of {', '.join(LOWER_ORDER_FINAL)}")
    last = i == grid.steps - 1
    return i == 0 or (last and (grid.steps < LOWER_ORDER_FINAL[lower_order_final] or grid.sigma[i + 1] == 0))


@solver("dpmpp_2m", order=2, predicts="data", grids={"*": "logsnr", "RectifiedFlow": "uniform"})
def dpmpp_2m(p: Tracer, grid: Grid, lower_order_final: str = "below_10") -> None:
    alpha, sigma, lam = grid.alpha, grid.sigma, grid.lam
    x, D_prev = p.start(), None
    for i in range(grid.steps):
        D = p.model(x, i)
        h = lam[i + 1] - lam[i]
        if D_prev is None or first_order(i, grid, lower_order_final):
            D_bar = D
        else:
            r = (lam[i] - lam[i - 1]) / h
            D_bar = (1 + 1 / (2 * r)) * D - 1 / (2 * r) * D_prev  # D_i of Algorithm 2
        x = p.state(sigma[i + 1] / sigma[i] * x - alpha[i + 1] * expm1(-h) * D_bar)
        D_prev = D
