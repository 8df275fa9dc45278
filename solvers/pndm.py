"""PNDM: Adams-Bashforth on the predicted noise, each step taken by DDIM's map.  Liu et al. 2022, arXiv 2202.09778.

In y = x/alpha and u = sigma/alpha the ODE of every schedule is dy/du = eps, and DDIM's map is Euler's step in u for a
noise that stays: the pseudo methods hand a classical method's average of several noises to it.  The weights are those
of equal steps, whatever the grid.  What differs is the start, where there is no history:
    pndm_s  two calls for the first step (trapezoid), then second order: N + 1 calls for N steps
    pndm_f  four calls for each of the first three steps (Runge-Kutta), then fourth order: N + 9 calls
    plms    pndm_s's first step, then orders 2, 3 and 4, as in diffusers: N + 1 calls
A call on the data is none: a Runge-Kutta step that lands there is DDIM's, and so is a multistep one.
"""

from collections.abc import Callable, Sequence

from solvers.grid import Grid
from solvers.schedule import Array, Schedule
from solvers.tracer import Symbol, Tracer, solver

# Adams-Bashforth for equal steps: weights of the last outputs, newest first.
ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
# DDPM's labels; uniform in t elsewhere, but where t is sigma itself.
GRIDS = {"VPDiscrete": "leading", "EDM": "karras"}
# The first step of rectified flow's uniform grid goes through nearly all of u: no noise from its end may count in it.
START_GRIDS = GRIDS | {"RectifiedFlow": "logsnr"}

NO_SIGNAL = "noise prediction cannot start from t = {}, where there is no signal: start later"

Start = Callable[[Tracer, Grid, int, Symbol], tuple[Symbol, Symbol]]


def transfer(schedule: Schedule, x: Symbol, e: Symbol, t: float, s: float) -> Symbol:
    """phi(x, e, t, s), DDIM's map from t to s with noise e; raises ValueError where there is no signal to scale."""
    a, sigma_t = float(schedule.alpha(t)), float(schedule.sigma(t))
    b, sigma_s = float(schedule.alpha(s)), float(schedule.sigma(s))
    if a == 0:
        raise ValueError(NO_SIGNAL.format(t))
    return b / a * x + (sigma_s - b / a * sigma_t) * e


def mix(e: list[Symbol], weights: Sequence[float] | Array) -> Symbol:
    """The weighted sum of as many of the latest outputs as there are weights."""
    return sum((w * e_j for w, e_j in zip(weights, e, strict=False)), Symbol())


def trapezoid(p: Tracer, grid: Grid, i: int, x: Symbol) -> tuple[Symbol, Symbol]:
    """Noises at both ends of step i, averaged: the next state, and the noise at its start."""
    t, s = grid.times[i], grid.times[i + 1]
    e_1 = p.model_at(x, t)
    end = p.state(transfer(grid.schedule, x, e_1, t, s))
    if s == 0:
        return end, e_1
    return p.state(transfer(grid.schedule, x, (e_1 + p.model_at(end, s)) / 2, t, s)), e_1


def runge_kutta(p: Tracer, grid: Grid, i: int, x: Symbol) -> tuple[Symbol, Symbol]:
    """Four noises over step i, two of them at the middle of its times: the next state, and the noise at its start."""
    t, s = grid.times[i], grid.times[i + 1]
    m, phi = (t + s) / 2, grid.schedule
    e_1 = p.model_at(x, t)
    if s == 0:
        return p.state(transfer(phi, x, e_1, t, s)), e_1
    e_2 = p.model_at(transfer(phi, x, e_1, t, m), m)
    e_3 = p.model_at(transfer(phi, x, e_2, t, m), m)
    most = p.state(transfer(phi, x, (e_1 + 2 * (e_2 + e_3)) / 6, t, s))  # now, so that e_2 and then x need no buffer
    e_4 = p.model_at(transfer(phi, x, e_3, t, s), s)
    return p.state(most + transfer(phi, Symbol(), e_4 / 6, t, s)), e_1


def pseudo(p: Tracer, grid: Grid, order: int, start: Start, starts: int) -> None:
    """`starts` steps of the starting method, then Adams-Bashforth of up to `order` on what they leave."""
    x, e = p.start(), list[Symbol]()
    for i in range(min(starts, grid.steps)):
        x, e_i = start(p, grid, i, x)
        e.insert(0, e_i)
    for i in range(starts, grid.steps):
        e = [p.model(x, i), *e[: order - 1]]
        n = 1 if grid.sigma[i + 1] == 0 else len(e)
        x = p.state(transfer(grid.schedule, x, mix(e, ADAMS_BASHFORTH[n]), grid.times[i], grid.times[i + 1]))


@solver("pndm_s", order=2, predicts="noise", grids=START_GRIDS)
def pndm_s(p: Tracer, grid: Grid) -> None:
    pseudo(p, grid, 2, trapezoid, 1)


@solver("pndm_f", order=2, nominal=4, predicts="noise", grids=START_GRIDS)
def pndm_f(p: Tracer, grid: Grid) -> None:
    pseudo(p, grid, 4, runge_kutta, 3)


@solver("plms", order=2, nominal=4, predicts="noise", grids=START_GRIDS)
def plms(p: Tracer, grid: Grid) -> None:
    pseudo(p, grid, 4, trapezoid, 1)
