"""Multistep consistency sampling: denoise all the way, add noise.  Song et al. 2023, arXiv 2303.01469, Algorithm 1.

With y = x/alpha and u = sigma/alpha a step is y' = D + sqrt(u'^2 - u_end^2) z: a consistency model's D has the noise
u_end of the schedule's end in it still, which the new noise completes.  On EDM that is the paper's x = D + sqrt(t^2 -
eps^2) z.  It solves no ODE: the network itself must be the solution, as a distilled one is.
"""

from solvers.grid import Grid
from solvers.tracer import Tracer, solver


@solver("consistency", order=0, predicts="data", grids={"*": "karras", "RectifiedFlow": "shifted"})
def consistency(p: Tracer, grid: Grid) -> None:
    schedule = grid.schedule
    u_end = float(schedule.sigma(schedule.t_end) / schedule.alpha(schedule.t_end))
    x = p.start()
    for i in range(grid.steps):
        D = p.model(x, i)
        alpha, sigma = grid.alpha[i + 1], grid.sigma[i + 1]
        added = sigma**2 - (alpha * u_end) ** 2
        x = p.state(alpha * D + added**0.5 * p.noise() if added > 0 else alpha * D)
