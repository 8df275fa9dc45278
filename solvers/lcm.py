"""LCM: multistep latent consistency sampling.  Luo et al. 2023, arXiv 2310.04378, Algorithm 3.

    x' = alpha' f + sigma' z,  f = D,  or with the boundary condition  f = c_skip x + c_out D,
    c_skip = s^2/(m^2 + s^2),  c_out = m/sqrt(m^2 + s^2),  s = 0.5,  m = 10 n for label n
which makes f the identity where n = 0.  The networks of LCM were distilled with it and are sampled with it
(boundary=True); those of DMD2 (Yin et al. 2024, arXiv 2405.14867) were not.  Where a schedule has no labels, a thousand
stand for its times.
"""

from math import hypot

from solvers.grid import Grid
from solvers.schedule import Schedule, VPDiscrete
from solvers.tracer import Tracer, solver

SIGMA_DATA = 0.5
SCALING = 10.0  # of labels
LABELS = 1000  # of a schedule without


def label(schedule: Schedule, t: float) -> float:
    """The label of time t, counted from the schedule's end; DDPM's own are whole, whatever was lost to rounding."""
    labels = len(schedule.betas) if isinstance(schedule, VPDiscrete) else LABELS
    return round(labels * (t - schedule.t_end) / schedule.t_max, 9)


def boundary_condition(schedule: Schedule, t: float) -> tuple[float, float]:
    """(c_skip, c_out) at time t; raises ValueError beyond the end, where no function is the identity twice."""
    m = SCALING * label(schedule, t)
    if m < 0:
        raise ValueError(f"lcm: boundary=True holds from t = {schedule.t_end} up, and the network is called at t = {t}")
    return (SIGMA_DATA / hypot(m, SIGMA_DATA)) ** 2, m / hypot(m, SIGMA_DATA)


@solver("lcm", order=0, predicts="data", grids={"*": "edm", "VPDiscrete": "lcm", "RectifiedFlow": "shifted"})
def lcm(p: Tracer, grid: Grid, boundary: bool = False) -> None:
    x = p.start()
    for i in range(grid.steps):
        D = p.model(x, i)
        c_skip, c_out = boundary_condition(grid.schedule, grid.times[i]) if boundary else (0.0, 1.0)
        x = grid.alpha[i + 1] * (c_out * D + c_skip * x)
        x = p.state(x + grid.sigma[i + 1] * p.noise() if grid.sigma[i + 1] > 0 else x)
