"""What DPM-Solver and DPM-Solver++ share.  Lu et al. 2022, arXiv 2206.00927 and 2211.01095.

From s to t, with h = lambda_t - lambda_s and m^(k) the derivatives of the network's output in lambda at s, the Taylor
expansion under the integral of the exact solution is
    noise: x_t = alpha_t/alpha_s x_s - sigma_t sum_k z phi_{k+1}(z) h^k m^(k),  z = h        (the first paper)
    data:  x_t = sigma_t/sigma_s x_s - alpha_t sum_k z phi_{k+1}(z) h^k m^(k),  z = -h       (the second)
    SDE:   x_t = e^{-h} sigma_t/sigma_s x_s - alpha_t sum_k z phi_{k+1}(z) h^k m^(k) + sigma_t sqrt(1 - e^{-2h}) noise
           with data prediction and z = -2h                                                  (the second)
so one Step does for all three; methods differ in the outputs whose differences stand for h^k m^(k).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, expm1, isinf, log1p, sqrt
from typing import NamedTuple

from solvers.exponential import phi
from solvers.grid import Grid
from solvers.schedule import Schedule
from solvers.tracer import Symbol, Tracer

# Below how many steps a method finishes at a falling order, which steadies the last, largest step at few calls: never
# (the papers as printed), the official code's rule, diffusers', and that of DPM-Solver-v3's and diff-sampler's code.
LOWER_ORDER_FINAL = {"never": 0, "below_10": 10, "below_15": 15, "always": 10**9}

# The weight of the first difference: half of the output's, or the expansion's own (diffusers: "midpoint" and "heun").
SOLVER_TYPES = ("dpmsolver", "taylor")


class Node(NamedTuple):
    """A time and its levels."""

    time: float
    alpha: float
    sigma: float
    lam: float


def node(grid: Grid, i: int) -> Node:
    return Node(grid.times[i], float(grid.alpha[i]), float(grid.sigma[i]), float(grid.lam[i]))


def node_at(schedule: Schedule, lam: float) -> Node:
    t = float(schedule.t_of_lam(lam))
    return Node(t, float(schedule.alpha(t)), float(schedule.sigma(t)), lam)


@dataclass(frozen=True)
class Step:
    """x_t = keep x_s - w(1) m - w(2) h m' - w(3) h^2 m'' + noise x a draw, with w(k) = scale z phi_k(z)."""

    keep: float
    first: float  # w(1), which is finite also where z is not: at the data, and at rectified flow's t = 1
    scale: float
    z: float
    noise: float = 0.0

    def w(self, k: int) -> float:
        return self.first if k == 1 else self.scale * self.z * phi(k, self.z)


def ode_step(p: Tracer, s: Node, t: Node) -> Step:
    """Raises ValueError for a noise prediction where there is only noise: it says nothing about the data."""
    h = t.lam - s.lam
    if p.predicts == "data":
        return Step(t.sigma / s.sigma, t.alpha * expm1(-h), t.alpha, -h)
    if s.alpha == 0:
        raise ValueError(f"noise prediction cannot start from t = {s.time}, where there is no signal: start later")
    return Step(t.alpha / s.alpha, -t.alpha / s.alpha * s.sigma * expm1(-h), t.sigma, h)


def sde_step(p: Tracer, s: Node, t: Node) -> Step:
    h = t.lam - s.lam
    noise = t.sigma * sqrt(-expm1(-2 * h))
    return Step(exp(-h) * t.sigma / s.sigma, t.alpha * expm1(-2 * h), t.alpha, -2 * h, noise)


def update(step: Step, x: Symbol, m: Sequence[Symbol], r: Sequence[float], taylor: bool, second: float = 2.0) -> Symbol:
    """x_t at order 1, 2 or 3, from as many outputs m at lambda_s + r h, the first at s itself (r = 0).

    At order 3, `second` times the second coefficient of the parabola through them stands for h^2 m'': in truth, 2.
    """
    x = step.keep * x - step.w(1) * m[0]
    if len(m) == 2:
        D1 = (m[1] - m[0]) / r[1]
        x -= (step.w(2) if taylor else step.w(1) / 2) * D1
    if len(m) == 3:
        D10, D11 = (m[1] - m[0]) / r[1], (m[2] - m[0]) / r[2]
        D2 = (D11 - D10) / (r[2] - r[1])
        x -= step.w(2) * (D10 - r[1] * D2) + step.w(3) * second * D2
    return x


def order_at(i: int, grid: Grid, order: int, lower_order_final: str) -> int:
    """The order of a multistep method's step i: limited by its history, the published rule, a step onto the data."""
    left = grid.steps - i
    if left == 1 and grid.sigma[-1] == 0:
        return 1
    return min(order, i + 1, left if grid.steps < LOWER_ORDER_FINAL[lower_order_final] else order)


def multistep(
    p: Tracer,
    grid: Grid,
    order: int,
    lower_order_final: str,
    taylor: bool = False,
    second: float = 2.0,
    sde: bool = False,
) -> None:
    """One call a step; past outputs stand for the derivatives."""
    x, m, lam = p.start(), list[Symbol](), grid.lam
    for i in range(grid.steps):
        m = [p.model(x, i), *m[: order - 1]]
        step = (sde_step if sde else ode_step)(p, node(grid, i), node(grid, i + 1))
        n = order_at(i, grid, order, lower_order_final)
        r = [0.0, *(float((lam[i - j] - lam[i]) / (lam[i + 1] - lam[i])) for j in range(1, n))]
        x = update(step, x, m[:n], r, taylor, second)
        x = p.state(x + step.noise * p.noise() if step.noise > 0 else x)


def singlestep(
    p: Tracer, grid: Grid, order: int, solver_type: str, lower_order_final: str = "never", eta: float = 0.0
) -> None:
    """One call a step of the grid too: an update of order k spans k of them, and calls at the nodes inside."""
    x, i = p.start(), 0
    for k in blocks(grid, order, lower_order_final):
        nodes, noise = [node(grid, j) for j in range(i, i + k + 1)], 0.0
        if eta > 0 and nodes[-1].sigma > 0:
            nodes, noise = ancestral(grid, nodes, eta)
        x = block(p, x, nodes, solver_type)
        x = p.state(x + noise * p.noise() if noise > 0 else x)
        i += k


def blocks(grid: Grid, order: int, lower_order_final: str) -> list[int]:
    """The orders of a singlestep method's updates: all the same, then what is left of the grid.

    Where nothing is left, lower_order_final ends on orders k - 1 and 1: the official code always at order 3, never at
    2.  A step from pure noise or onto the data, where lambda is infinite, is of order 1.
    """
    full, rest = divmod(grid.steps, order)
    orders = [order] * full + [rest] * (rest > 0)
    lowers = rest == 0 and grid.steps < LOWER_ORDER_FINAL[lower_order_final]
    if orders[-1] > 1 and (lowers or grid.sigma[-1] == 0):
        orders[-1:] = [orders[-1] - 1, 1]
    if orders[0] > 1 and isinf(grid.lam[0]):
        orders[:1] = [1, orders[0] - 1]
    return orders


def block(p: Tracer, x: Symbol, nodes: Sequence[Node], solver_type: str) -> Symbol:
    """From the first node to the last, by updates of orders 1, 2, ... from the first node to each of the others.

    Order 3 is the paper's DPM-Solver-3 unless solver_type is "taylor", the parabola through all three outputs: its
    first difference is of two outputs alone, and weighed as in the expansion.  "midpoint", diffusers' default, weighs
    it so at the end only.
    """
    s, x_t, m = nodes[0], x, list[Symbol]()
    for j, t in enumerate(nodes[1:], 1):
        m.append(p.model_at(x_t, nodes[j - 1].time))
        step, r = ode_step(p, s, t), [(n.lam - s.lam) / (t.lam - s.lam) for n in nodes[:j]]
        if solver_type == "taylor":
            x_t = update(step, x, m, r, taylor=True)
        elif j < 3:
            x_t = update(step, x, m, r, taylor=len(nodes) == 4 and solver_type == "dpmsolver")
        else:
            x_t = update(step, x, [m[0], m[2]], [r[0], r[2]], taylor=True)
    return x_t


def ancestral(grid: Grid, nodes: Sequence[Node], eta: float) -> tuple[list[Node], float]:
    """The block's nodes, stretched to end at less noise than it should, and the noise that leads back up.

    Less by eta times what DDPM's step adds (DDIM's Eq. (16)), but never below the grid's end, as in k-diffusion: the
    last block adds none.
    """
    s, t, end = nodes[0], nodes[-1], float(grid.lam[-1])
    kept = eta**2 * expm1(-2 * (t.lam - s.lam))  # sigma_down^2 = sigma_t^2 (1 + kept)
    lam = min(t.lam - 0.5 * log1p(kept), end) if kept > -1 else end
    stretch = (lam - s.lam) / (t.lam - s.lam)
    inner = [node_at(grid.schedule, s.lam + stretch * (n.lam - s.lam)) for n in nodes[1:-1]]
    down = Node(t.time, t.alpha, t.sigma * exp(t.lam - lam), lam)
    return [s, *inner, down], t.sigma * sqrt(-expm1(2 * (t.lam - lam)))
