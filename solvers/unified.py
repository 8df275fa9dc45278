"""One frame for multistep solvers, each step free in what it does.  Liu et al. 2024, arXiv 2312.07243, Section 3.

Every multistep method takes the exact step of the ODE for an output that stays, and puts a weighted mean of the outputs
m_j at the last nodes in its place:
    x' = keep x - first sum_j w_j m_j,    sum_j w_j = 1,    m the predicted noise or data    (dpm_solver_steps.py)
so a Move says which prediction, how many outputs, and by which scheme they are weighed:
    lam, u, t   exactly, as a polynomial in lambda (DPM-Solver, UniPC), in sigma/alpha, in DEIS's time
    equal       by Adams-Bashforth's weights for equal steps (iPNDM)
    half        as lam, but with half of the difference of two outputs (UniPC, DPM-Solver-2M)
    dpm         as half, and with half of the curvature of three (DPM-Solver's code at order 3)
A corrector weighs the output at the step's end too, once that is there, and so improves x' at no call.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import expm1
from typing import Literal, get_args

import numpy as np

from solvers.deis import time_of
from solvers.exponential import NODES, WEIGHTS, lagrange, lagrange_integrals, phi
from solvers.grid import Grid
from solvers.model import Prediction, conversion
from solvers.plan import Plan
from solvers.schedule import Array, Schedule
from solvers.tracer import Symbol, Tracer

Scheme = Literal["lam", "u", "t", "equal", "half", "dpm"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
OUTPUTS = 4  # the most that a step weighs


@dataclass(frozen=True)
class Move:
    """What one step does; `corrector` is the scheme of its corrector, or "none"."""

    predicts: Literal["noise", "data"]
    order: int
    scheme: Scheme = "lam"
    corrector: Scheme | Literal["none"] = "none"


@dataclass(frozen=True)
class Recipe:
    """A sampler of one call a step: N + 1 times and N moves.  Raises ValueError for a move that it cannot make."""

    times: tuple[float, ...]
    moves: tuple[Move, ...]

    def __post_init__(self) -> None:
        if len(self.times) != len(self.moves) + 1:
            raise ValueError(f"{len(self.moves)} moves need {len(self.moves) + 1} times, not {len(self.times)}")
        for i, move in enumerate(self.moves):
            if not 1 <= move.order <= min(OUTPUTS, i + 1):
                raise ValueError(f"move {i} has order {move.order}: it may have 1 to {min(OUTPUTS, i + 1)}")
            words = (move.predicts in ("noise", "data"), move.scheme in SCHEMES, move.corrector in ("none", *SCHEMES))
            if not all(words):
                raise ValueError(f"{move}: predicts noise or data, by one of {', '.join(SCHEMES)}")


# Published solvers as the move that they make at each step, at a lower order at the start, and at the end: the rule's
# name is their lower_order_final's.
PUBLISHED: dict[str, tuple[Move, bool]] = {
    "ddim": (Move("noise", 1), False),
    "dpmpp_2m": (Move("data", 2, "dpm"), True),
    "dpmpp_3m": (Move("data", 3, "dpm"), True),
    "dpm_solver_2m": (Move("noise", 2, "dpm"), True),
    "dpm_solver_3m": (Move("noise", 3, "dpm"), True),
    "unipc": (Move("data", 3, "half", "half"), True),
    "deis_tab3": (Move("noise", 4, "t"), False),
    "ipndm": (Move("noise", 4, "equal"), False),
    "ipndm_v": (Move("noise", 4, "u"), False),
}


def published(name: str, times: Sequence[float]) -> Recipe:
    """The recipe of a published solver on these times, of which its code lowers the order of the last or does not."""
    move, lowers = PUBLISHED[name]
    N = len(times) - 1
    orders = [min(move.order, i + 1, N - i if lowers else N) for i in range(N)]
    return Recipe(tuple(times), tuple(replace(move, order=n) for n in orders))


def theta(grid: Grid, lam: Array, scheme: str) -> Array:
    """What the scheme takes the output for a polynomial in, at these lambda."""
    if scheme == "t":
        return time_of(grid.schedule)(np.exp(-lam))
    return np.exp(-lam) if scheme == "u" else lam


def weights(grid: Grid, i: int, nodes: Sequence[int], predicts: str, scheme: str) -> Array:
    """The weights w_j, whose sum is 1, of the outputs at these nodes of the grid for its step i: (len(nodes),)."""
    if len(nodes) == 1:
        return np.ones(1)
    if scheme == "equal":
        return lagrange_integrals(np.array(nodes, np.float64), i, i + 1)
    lam, h = grid.lam, grid.lam[i + 1] - grid.lam[i]
    r, z = (lam[list(nodes)] - lam[i]) / h, float(h if predicts == "noise" else -h)
    if scheme in ("half", "dpm") and len(nodes) == 2:
        return np.array([1 - 0.5 / r[1], 0.5 / r[1]])
    s = (NODES + 1) / 2
    at, inner = (theta(grid, lam[i] + h * s, scheme) for s in (r, s))
    measure = WEIGHTS * np.exp(-z * s)
    scale = at.max() - at.min()
    w = lagrange((at - at[0]) / scale, (inner - at[0]) / scale) @ (measure / measure.sum())
    if scheme == "dpm" and len(nodes) == 3:
        curvature = 1 / np.array([np.prod(r_j - np.delete(r, j)) for j, r_j in enumerate(r)])
        w -= phi(3, z) / phi(1, z) * curvature
    return np.asarray(w)


def constant(grid: Grid, i: int, predicts: str) -> tuple[float, float]:
    """(keep, first) of step i: exact for an output that stays."""
    alpha, sigma = grid.alpha, grid.sigma
    e = expm1(grid.lam[i] - grid.lam[i + 1])
    if predicts == "data":
        return sigma[i + 1] / sigma[i], alpha[i + 1] * e
    return alpha[i + 1] / alpha[i], -alpha[i + 1] / alpha[i] * sigma[i] * e


def trace(p: Tracer, grid: Grid, moves: Sequence[Move]) -> None:
    """One call a step; an output in the other prediction takes the state it was made from along."""
    x, calls = p.start(), list[tuple[Symbol, Symbol]]()  # the state and the output at each node

    def mean(i: int, nodes: Sequence[int], scheme: str) -> Symbol:
        m = Symbol()
        for w, j in zip(weights(grid, i, nodes, moves[i].predicts, scheme), nodes, strict=True):
            A, B = conversion(p.predicts, moves[i].predicts, float(grid.alpha[j]), float(grid.sigma[j]))
            m += w * (A * calls[j][1] + B * calls[j][0])
        return m

    calls.append((x, p.model(x, 0)))
    for i, move in enumerate(moves):
        keep, first = constant(grid, i, move.predicts)
        nodes = range(i, i - move.order, -1)
        m = mean(i, nodes, move.scheme)
        x = x_p = p.state(keep * x - first * m)
        if i + 1 < len(moves):
            calls.append((x_p, p.model(x_p, i + 1)))
            if move.corrector != "none":
                x = x_p + first * (m - mean(i, [*nodes, i + 1], move.corrector))


def plan(recipe: Recipe, schedule: Schedule) -> Plan:
    """The plan of a recipe; raises ValueError for times with an infinite lambda."""
    grid = Grid(schedule, recipe.times)
    if not np.isfinite(grid.lam).all():
        raise ValueError(f"a recipe needs times with a finite lambda, not {recipe.times}")
    predicts: Prediction = "noise" if all(move.predicts == "noise" for move in recipe.moves) else "data"
    p = Tracer(grid, predicts)
    trace(p, grid, recipe.moves)
    return Plan("usf", (), 0, predicts, schedule, recipe.times, tuple(p.instructions))
