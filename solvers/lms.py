"""LMS: Adams-Bashforth on unequal steps in EDM's coordinates, arXiv 2206.00364, Eq. (4).  Crowson 2022, k-diffusion.

With y = x/alpha and u = sigma/alpha the ODE of every schedule is dy/du = e; the polynomial through the last `order`
predictions, in u, is integrated exactly from u to u'.  The first steps, which have less history, are of lower order.
"""

from math import inf

from solvers.exponential import lagrange_integrals
from solvers.grid import Grid
from solvers.karras import GRIDS, INFINITE, along, level
from solvers.tracer import Symbol, Tracer, solver


# Below 80 steps it shows less than its order: 3.4 from 20 to 160 steps and 3.9 beyond at order 4, 2.7 and 3.0 at 3.
@solver("lms", order=lambda o: int(o["order"]), predicts="noise", grids=GRIDS)
def lms(p: Tracer, grid: Grid, order: int = 4) -> None:
    if order not in (1, 2, 3, 4):
        raise ValueError(f"lms: order={order} must be 1, 2, 3 or 4")
    alpha, u = grid.alpha, grid.u
    if u[0] == inf:
        raise ValueError(INFINITE)
    x = p.start()
    history: list[tuple[float, Symbol]] = []  # (u, e), the newest last
    for i in range(grid.steps):
        history = [*history, (u[i], p.model(x, i))][-order:]
        nodes, outputs = zip(*history, strict=True)
        weights = lagrange_integrals(nodes, u[i], u[i + 1])
        integral = sum((w * e for w, e in zip(weights, outputs, strict=True)), Symbol())
        x = p.state(along(integral / (u[i + 1] - u[i]), x, level(grid, i), alpha[i + 1], u[i + 1]))
