"""TCD: a jump along the ODE beyond the next time, then noise.  Zheng et al. 2024, arXiv 2402.19159.

    x_s = alpha_s D + sigma_s eps,  x' = (alpha'/alpha_s) x_s + sqrt(sigma'^2 - (alpha'/alpha_s)^2 sigma_s^2) z
with s = (1 - eta) t', at a whole label below it where the schedule has labels.  eta, the paper's gamma, is 0 for DDIM
and 1 for a jump to the end each time, as a consistency model's.
"""

from math import floor, sqrt

from solvers.grid import Grid
from solvers.lcm import label
from solvers.schedule import Schedule, VPDiscrete
from solvers.tracer import Tracer, check_unit, solver


def jump(schedule: Schedule, t: float, eta: float) -> float:
    """s for the next time t: between t and the schedule's end, or t itself at or beyond the end."""
    if t <= schedule.t_end or eta == 0:
        return t
    if isinstance(schedule, VPDiscrete):
        return (floor((1 - eta) * label(schedule, t)) + 1) / len(schedule.betas)
    return schedule.t_end + (1 - eta) * (t - schedule.t_end)


@solver(
    "tcd",
    order=lambda options: 0 if options["eta"] else 1,
    predicts="data",
    grids={"*": "edm", "VPDiscrete": "tcd", "RectifiedFlow": "shifted"},
)
def tcd(p: Tracer, grid: Grid, eta: float = 0.3) -> None:
    check_unit("tcd", "eta", eta)
    x = p.start()
    for i in range(grid.steps):
        D = p.model(x, i)
        s = jump(grid.schedule, grid.times[i + 1], eta)
        alpha_s, sigma_s = float(grid.schedule.alpha(s)), float(grid.schedule.sigma(s))
        ratio = sigma_s / grid.sigma[i]  # eps = (x - alpha D)/sigma
        x = ratio * x + (alpha_s - ratio * grid.alpha[i]) * D
        back = grid.alpha[i + 1] / alpha_s
        added = grid.sigma[i + 1] ** 2 - (back * sigma_s) ** 2
        x = p.state(back * x + sqrt(added) * p.noise() if s < grid.times[i + 1] else x)
