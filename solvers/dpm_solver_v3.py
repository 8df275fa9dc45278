"""DPM-Solver-v3: multistep, in a parametrisation learned from the checkpoint.  Zheng et al. 2023, arXiv 2310.13268.

With l, s and b of a sample's shape, functions of lambda that solvers/tune/model_statistics.py measures, and
    f = (sigma eps - l x)/alpha,    L = int l,    S = int s,    B = int e^{-S} b,
    g = e^{S_s - S} f - beta,       beta = e^{S_s} (B - B_s),
the exact solution from s to t is, whatever l, s and b are,
    x_t = alpha_t e^{L_s - L_t} (x_s/alpha_s - int_s^t e^{(L + S) - (L + S)_s} (g + beta) dlambda).
They make the Taylor expansion of g about s short, Eq. (8): l makes f depend little on x, s and b make g change little
with lambda.  Differences of past g stand for its derivatives.

l, s and b are known at nodes and linear between them; the integrals are the official trapezoid sums.  The official code
moves the sampling times to the nearest nodes.  Here the grid's times, which other solvers share and the plan tells,
stay where they are and become nodes; on a grid of the statistics' nodes that is the official sum, term by term.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import cumulative_trapezoid, trapezoid

from solvers.dpm_solver_steps import LOWER_ORDER_FINAL, node, order_at
from solvers.exponential import Array
from solvers.grid import Grid
from solvers.learned import Learned, pick
from solvers.plan import Option
from solvers.tracer import Symbol, Tracer, check_word, solver

ROUNDING = 1e-6  # in lambda: how far a grid may begin before the first node or end after the last


@dataclass(frozen=True)
class Statistics:
    """l, L, S and B at the nodes lam (K,), each (K, *shape); the grid's i-th time is node at[i]."""

    grid: Grid
    lam: Array
    l: Array  # noqa: E741  # the paper's
    L: Array
    S: Array
    B: Array
    at: NDArray[np.int64]

    def f(self, i: int, eps: Symbol, x: Symbol) -> Symbol:
        here, l_i = node(self.grid, i), np.asarray(self.l[self.at[i]])
        return (here.sigma * eps - x * l_i) / here.alpha

    def beta(self, s: int, k: int | slice) -> Array:
        """beta at the nodes k, seen from the grid's s-th time."""
        return np.asarray(np.exp(self.S[self.at[s]]) * (self.B[k] - self.B[self.at[s]]))

    def g(self, p: Tracer, s: int, i: int, f: Symbol) -> Symbol:
        """g at the grid's i-th time, seen from the s-th."""
        growth = np.asarray(np.exp(self.S[self.at[s]] - self.S[self.at[i]]))
        return f * growth - p.constant(self.beta(s, self.at[i]))

    def keep(self, s: int) -> Array:
        """alpha_t e^{L_s - L_t}, t being the time after the grid's s-th."""
        return np.asarray(self.grid.alpha[s + 1] * np.exp(self.L[self.at[s]] - self.L[self.at[s + 1]]))

    def inside(self, s: int) -> slice:
        """The nodes of the step from the grid's s-th time."""
        return slice(self.at[s], self.at[s + 1] + 1)

    def integral(self, s: int, values: Array | float) -> Array:
        """int_s^t of e^{(L + S) - (L + S)_s} times `values` at the step's nodes."""
        k = self.inside(s)
        L_S = self.L[k] + self.S[k]
        return np.asarray(trapezoid(np.exp(L_S - L_S[0]) * values, self.lam[k], axis=0))

    def first(self, p: Tracer, s: int, x: Symbol, f: Symbol) -> Symbol:
        """x_t with g constant: first order."""
        one, beta = self.integral(s, 1.0), self.integral(s, self.beta(s, self.inside(s)))
        return (x / node(self.grid, s).alpha - f * one - p.constant(beta)) * self.keep(s)

    def higher(self, p: Tracer, s: int, nodes: Sequence[int], f: Sequence[Symbol], pseudo: bool) -> Symbol:
        """What g's derivatives take off that, by its values at the grid's `nodes`, of which s is the first."""
        lam, h = self.grid.lam, self.grid.lam[s + 1] - self.grid.lam[s]
        g = [self.g(p, s, i, f[i]) for i in nodes]
        total = Symbol()
        for k, weights in enumerate(expansion((lam[list(nodes)] - lam[s]) / h, pseudo), 1):
            power = along(((self.lam[self.inside(s)] - lam[s]) / h) ** k, self.l)
            total += sum((w * g_i for w, g_i in zip(weights, g, strict=True)), Symbol()) * self.integral(s, power)
        return total * self.keep(s)


def along(values: Array, like: Array) -> Array:
    """One number a node, shaped to multiply an array (K, *shape)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def expansion(r: Array, pseudo: bool) -> Array:
    """Weights of the values at r, which begins with 0, in the coefficients of r, ..., r^n: (n, n + 1).

    Of the polynomial through them; or, pseudo, the divided differences of the first 2, ..., n + 1 values.
    """
    if not pseudo:
        return np.asarray(np.linalg.inv(np.vander(r, increasing=True))[1:])
    rows = np.zeros((len(r) - 1, len(r)))
    for k in range(1, len(r)):
        rows[k - 1, : k + 1] = [1 / np.prod(r[j] - np.delete(r[: k + 1], j)) for j in range(k + 1)]
    return rows


def integrated(nodes: Array, lsb: Array, grid: Grid) -> Statistics:
    """What l, s and b at the nodes, (3, K, *shape), give on a grid; raises ValueError where it reaches beyond them."""
    first, last = grid.lam[0], grid.lam[-1]
    if first < nodes[0] - ROUNDING or last > nodes[-1] + ROUNDING:
        raise ValueError(
            f"dpm_solver_v3: its statistics reach from lambda = {nodes[0]:g} to {nodes[-1]:g}, "
            f"but the grid from {first:g} to {last:g}"
        )
    lam = np.union1d(nodes, grid.lam)
    left = np.clip(np.searchsorted(nodes, lam, side="right") - 1, 0, len(nodes) - 2)
    r = along((lam - nodes[left]) / (nodes[left + 1] - nodes[left]), lsb[0])
    lsb = (1 - r) * lsb[:, left] + r * lsb[:, left + 1]
    L, S = cumulative_trapezoid(lsb[:2], lam, axis=1, initial=0)
    B = cumulative_trapezoid(np.exp(-S) * lsb[2], lam, axis=0, initial=0)
    return Statistics(grid, lam, lsb[0], L, S, B, np.searchsorted(lam, grid.lam))


def order_of(options: Mapping[str, Option]) -> int:
    """The corrector's, where it acts all along; pseudo differences are of second order, and gain one at order 1."""
    order = int(options["order"])
    predicted, corrected = min(order, 2) if options["p_pseudo"] else order, 2 if options["c_pseudo"] else order
    if options["corrector"] and options["half"]:
        return min(predicted, corrected)
    return corrected if options["corrector"] else predicted


def any_budget(files: Sequence[Learned], nfe: int, guidance: float) -> Learned | None:
    return pick(files, None, guidance)


@solver(
    "dpm_solver_v3",
    order=order_of,
    predicts="noise",
    grids={"*": "logsnr", "VPDiscrete": "uniform"},
    note="half=True: the corrector acts where t > 0.5, as in the official code; its README says where t <= 0.5",
    recall=any_budget,
)
def dpm_solver_v3(
    p: Tracer,
    grid: Grid,
    order: int = 3,
    p_pseudo: bool = False,
    corrector: bool = True,
    c_pseudo: bool = False,
    half: bool = False,
    lower_order_final: str = "always",
    degenerate: bool = False,
) -> None:
    if not 1 <= order <= 3:
        raise ValueError(f"dpm_solver_v3: order={order} must lie between 1 and 3")
    check_word("dpm_solver_v3", "lower_order_final", lower_order_final, LOWER_ORDER_FINAL)
    lsb = np.stack([p.learned[name] for name in "lsb"])
    if degenerate:  # then f is minus the data prediction: DPM-Solver++, but for the trapezoid sums
        lsb[0], lsb[1:] = 1, 0
    at = integrated(p.learned["lam"], lsb, grid)
    x, f, n, P = p.start(), list[Symbol](), 0, Symbol()
    for i in range(grid.steps):
        f.append(p.state(at.f(i, p.model(x, i), x)))
        c = n + c_pseudo  # the corrector takes the step that led here again, now with the output at its end
        if corrector and c > 1 and (grid.times[i] > 0.5 or not half):
            x = x + P - at.higher(p, i - 1, [i - 1, i, *range(i - 2, i - c, -1)], f, c_pseudo)
        n = order_at(i, grid, order, lower_order_final)
        P = at.higher(p, i, range(i, i - n, -1), f, p_pseudo)
        x = p.state(at.first(p, i, x, f[i]) - P)
