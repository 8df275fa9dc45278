"""Euler and Heun along a rectified flow's velocity.  Liu et al. 2022, arXiv 2209.03003, Eq. (1).

With z = x/(alpha + sigma) and s = sigma/(alpha + sigma), rectified flow's own time, the ODE of every schedule is
dz/ds = v = eps - x_0, which is finite from pure noise (s = 1) to the data (s = 0).
    Euler:  z' = z + (s' - s) v         Heun:  z' = z + (s' - s) (v + v')/2
Euler's samples are DDIM's, as both keep x_0 and eps for the length of a step; it has a name of its own because it works
in what such a model predicts, with nothing to convert, and because it is the sampler such models are published with.
"""

from solvers.grid import Grid
from solvers.tracer import Tracer, solver

GRIDS = {"RectifiedFlow": "shifted", "EDM": "edm"}


def step(grid: Grid, i: int) -> tuple[float, float]:
    """(a, b) such that Euler's step to the grid's next time is x' = a x + b v."""
    scale = grid.alpha + grid.sigma
    s = grid.sigma / scale
    return scale[i + 1] / scale[i], scale[i + 1] * (s[i + 1] - s[i])


@solver("flow_euler", order=1, predicts="velocity", grids=GRIDS)
def flow_euler(p: Tracer, grid: Grid) -> None:
    x = p.start()
    for i in range(grid.steps):
        a, b = step(grid, i)
        x = p.state(a * x + b * p.model(x, i))


@solver("flow_heun", order=2, predicts="velocity", grids=GRIDS)
def flow_heun(p: Tracer, grid: Grid) -> None:
    x = p.start()
    for i in range(grid.steps):
        a, b = step(grid, i)
        v = p.model(x, i)
        euler = p.state(a * x + b * v)
        if grid.sigma[i + 1] == 0:  # no network is called on the data: 2N - 1 calls for N steps onto it
            return
        x = p.state(euler + b / 2 * (p.model(euler, i + 1) - v))
