"""GHVB: momentum of fractional order on the predicted noise.  Wizadwongsa et al. 2023, arXiv 2307.11118.

An order o stands for an Adams-Bashforth method of P = ceil(o) outputs and for momentum by beta = o - (P - 1).  With
AB_P(e) = sum_k c_k nabla^k e, nabla e = e - e_1 the backward difference, each step is DDIM's with the noise
    HB    v = (1 - beta) v_1 + beta AB_P(e)                                   (heavy ball)
    NT    v as HB's, then (1 - beta) v + beta AB_P(e)                         (Nesterov)
    GHVB  v = (1 - beta) v_1 + beta e, then AB_P((beta + (1 - beta) nabla) v)/beta, cut at nabla^(P - 1)
GHVB undoes v's average to the order of the method; the others stay at first order unless beta = 1, where all three are
Adams-Bashforth.  Its weights are those of equal steps: second order at best where the steps are not.  A step onto the
data is DDIM's.
"""

from collections.abc import Mapping
from itertools import pairwise
from math import ceil

from solvers.grid import Grid
from solvers.plan import Option
from solvers.pndm import GRIDS, transfer
from solvers.tracer import Symbol, Tracer, solver

DIFFERENCES = (1, 1 / 2, 5 / 12, 3 / 8)  # c_k


def split(method: str, order: float) -> tuple[int, float]:
    """P and beta of a fractional order."""
    if not 0 < order <= len(DIFFERENCES):
        raise ValueError(f"{method}: order={order} must lie in (0, {len(DIFFERENCES)}]")
    P = ceil(order)
    return P, order - (P - 1)


def outputs(options: Mapping[str, Option]) -> int:
    """P, the order of the Adams-Bashforth method on equal steps."""
    return ceil(float(options["order"]))


def plain(options: Mapping[str, Option]) -> int:
    """The order of HB and NT: the first, but Adams-Bashforth's at whole orders, where there is no momentum."""
    order = float(options["order"])
    return min(int(order), 2) if order.is_integer() else 1


def adams(v: list[Symbol], beta: float = 1.0) -> Symbol:
    """AB_P((beta + (1 - beta) nabla) v)/beta of P values, newest first, cut at nabla^(P - 1)."""
    d, c = Symbol(), (0.0, *DIFFERENCES)
    for k in range(len(v)):
        d, nabla = d + (beta * c[k + 1] + (1 - beta) * c[k]) / beta * v[0], pairwise(v)
        v = [new - old for new, old in nabla]
    return d


def average(p: Tracer, v: Symbol | None, new: Symbol, beta: float) -> Symbol:
    """(1 - beta) v + beta new, in a register of its own where it is not `new`."""
    return new if v is None or beta == 1 else p.state((1 - beta) * v + beta * new)


@solver("ghvb", order=lambda o: min(outputs(o), 2), nominal=outputs, predicts="noise", grids=GRIDS)
def ghvb(p: Tracer, grid: Grid, order: float = 2.5) -> None:
    P, beta = split("ghvb", order)
    x, v = p.start(), list[Symbol]()
    for i, (t, s) in enumerate(pairwise(grid.times)):
        e = p.model(x, i)
        v = [average(p, v[0] if v else None, e, beta), *v[: P - 1]]
        x = p.state(transfer(grid.schedule, x, adams(v, beta) if s > 0 else e, t, s))


@solver("hb", order=plain, nominal=outputs, predicts="noise", grids=GRIDS)
def hb(p: Tracer, grid: Grid, order: float = 2.5) -> None:
    P, beta = split("hb", order)
    x, e, v = p.start(), list[Symbol](), None
    for i, (t, s) in enumerate(pairwise(grid.times)):
        e = [p.model(x, i), *e[: P - 1]]
        v = average(p, v, adams(e), beta)
        x = p.state(transfer(grid.schedule, x, v if s > 0 else e[0], t, s))


@solver("nt", order=plain, nominal=outputs, predicts="noise", grids=GRIDS)
def nt(p: Tracer, grid: Grid, order: float = 2.5) -> None:
    P, beta = split("nt", order)
    x, e, v = p.start(), list[Symbol](), None
    for i, (t, s) in enumerate(pairwise(grid.times)):
        e = [p.model(x, i), *e[: P - 1]]
        v_1, v = v, average(p, v, adams(e), beta)
        d = v if v_1 is None else (2 - beta) * v - (1 - beta) * v_1  # (1 - beta) v + beta AB_P(e), which is in v
        x = p.state(transfer(grid.schedule, x, d if s > 0 else e[0], t, s))
