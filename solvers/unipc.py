"""UniPC: multistep predictor (UniP) and corrector (UniC) of any order.  Zhao et al. 2023, arXiv 2302.04867, Section 3.

In the data prediction m, with z = -h (in the noise prediction z = h, and alpha and sigma change places):
    UniP-p:  x' = sigma'/sigma x - alpha' (e^z - 1) m_0 - alpha' B(h) sum_j a_j D_j,    D_j = (m_j - m_0)/r_j
over the last p outputs m_0, m_1, ..., at r_j = (lambda_j - lambda_0)/h.  UniC-p adds to the sum the output m' at the
predicted x', where r = 1, and so corrects x' at no extra call and gains an order; m' stays as it is.

Theorem 3.1 wants the sum exact for polynomials, so B cancels, but for a sum of one term: there a = 1/2 will do, and
"bh1" is B = z, "bh2" is B = e^z - 1.  "vary", the paper's varying coefficients, is exact there too.
"""

from collections.abc import Sequence
from math import factorial, isfinite

import numpy as np

from solvers.dpm_solver_steps import LOWER_ORDER_FINAL, Step, node, ode_step, order_at
from solvers.exponential import Array, phi
from solvers.grid import Grid
from solvers.tracer import Symbol, Tracer, check_word, solver


def weights(step: Step, r: Sequence[float], variant: str) -> Array:
    """alpha' B(h) a_j for each r_j: alpha' times what solves sum_j w_j r_j^(k-1) = k! phi_k(z) - 1, k = 1 .. len(r)."""
    if len(r) == 1 and variant != "vary":
        B = step.first if variant == "bh2" else step.scale * step.z
        if isfinite(B):  # from rectified flow's t = 1 the step is infinite, and so is bh1's B
            return np.array([B / 2])
    moments = [factorial(k) * phi(k, step.z) - 1 for k in range(1, len(r) + 1)]
    return step.scale * np.linalg.solve(np.vander(r, increasing=True).T, moments)


def total(w: Array, D: Sequence[Symbol]) -> Symbol:
    """sum_j w_j D_j."""
    return sum((w_j * D_j for w_j, D_j in zip(w, D, strict=True)), Symbol())


def advance(
    p: Tracer, grid: Grid, i: int, x: Symbol, m: list[Symbol], order: int, variant: str, lower: str, corrects: bool
) -> Symbol:
    """x after step i, from the outputs m so far, the newest first; the output at the step's end joins them."""
    lam = grid.lam
    step = ode_step(p, node(grid, i), node(grid, i + 1))
    known = range(1, order_at(i, grid, order, lower))
    past = [j for j in known if isfinite(lam[i - j])]  # from lambda = -inf there is no slope
    r = [(lam[i - j] - lam[i]) / (lam[i + 1] - lam[i]) for j in past]
    D = [(m[j] - m[0]) / r_j for j, r_j in zip(past, r, strict=True)]
    P = total(weights(step, r, variant), D)
    x_p = p.state(step.keep * x - step.first * m[0] - P)
    if i + 1 == grid.steps:
        return x_p
    m.insert(0, p.model(x_p, i + 1))
    C = total(weights(step, [*r, 1.0], variant), [*D, m[0] - m[1]]) if corrects else P
    return x_p + P - C  # the corrected state, never a register: the next state takes its terms up


def check(method: str, order: int, variant: str, predicts: str, lower: str) -> None:
    """Raises ValueError naming what is accepted."""
    if not 1 <= order <= 4:
        raise ValueError(f"{method}: order={order} must lie between 1 and 4")
    check_word(method, "variant", variant, ("bh1", "bh2", "vary"))
    check_word(method, "predicts", predicts, ("data", "noise"))
    check_word(method, "lower_order_final", lower, LOWER_ORDER_FINAL)


@solver(
    "unipc",
    order=lambda o: int(o["order"]) + bool(o["corrector"]),
    predicts="data",
    grids={"*": "logsnr", "VPDiscrete": "uniform", "RectifiedFlow": "shifted"},
    note="official vary_coeff drops most of the corrector's sum, which makes it first order; variant=vary: all of it",
)
def unipc(
    p: Tracer,
    grid: Grid,
    order: int = 3,
    variant: str = "bh2",
    predicts: str = "data",
    lower_order_final: str = "always",
    corrector: bool = True,
) -> None:
    check("unipc", order, variant, predicts, lower_order_final)
    x, m = p.start(), [p.model(p.start(), 0)]
    for i in range(grid.steps):
        x = advance(p, grid, i, x, m, order, variant, lower_order_final, corrector)
