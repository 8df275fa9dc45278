"""BDIA: DDIM's step forth and back, an update that can be inverted.  Zhang et al. 2023, arXiv 2307.10829.

With F(t, s) DDIM's map of the state and noise at t to s, and t_1, x_1 the time and state before,
    x' = F(t, t') + gamma (x_1 - F(t, t_1))
so that at gamma = 1 the two half-steps make a leapfrog of second order, and at gamma = 0 it is DDIM.  The first step is
DDIM's, and so is one onto the data.
"""

from itertools import pairwise

from solvers.grid import Grid
from solvers.pndm import GRIDS, transfer
from solvers.tracer import Tracer, check_unit, solver


@solver("bdia", order=lambda o: 2 if o["gamma"] == 1 else 1, predicts="noise", grids=GRIDS)
def bdia(p: Tracer, grid: Grid, gamma: float = 1.0) -> None:
    check_unit("bdia", "gamma", gamma)
    x, x_1, times = p.start(), None, grid.times
    for i, (t, s) in enumerate(pairwise(times)):
        e = p.model(x, i)
        new = transfer(grid.schedule, x, e, t, s)
        if x_1 is not None and s > 0:
            new += gamma * (x_1 - transfer(grid.schedule, x, e, t, times[i - 1]))
        x, x_1 = p.state(new), x
