"""What the methods in EDM's coordinates share: y = x/alpha against the noise level u = sigma/alpha, on any schedule.

There every schedule's ODE is dy/du = e = (y - D)/u.  Karras et al. 2022, arXiv 2206.00364, Eq. (4); k-diffusion's code.
"""

from dataclasses import dataclass
from math import exp, inf, log, sqrt

from solvers.grid import Grid
from solvers.tracer import Symbol, Tracer

GRIDS = {"*": "edm", "RectifiedFlow": "shifted"}  # of every method here; on a flow, u would crowd the first steps
S_TMAX = 1e9  # stands for the infinity of the official code, which JSON cannot hold
GAMMA_MAX = sqrt(2) - 1  # churn at most doubles the variance of the noise
INFINITE = "a step in sigma/alpha from pure noise is infinite: start later than at alpha = 0"


@dataclass(frozen=True)
class Level:
    """A time with its alpha, sigma and u."""

    t: float
    alpha: float
    sigma: float
    u: float


def level(grid: Grid, i: int) -> Level:
    """The grid's i-th level."""
    return Level(grid.times[i], float(grid.alpha[i]), float(grid.sigma[i]), float(grid.u[i]))


def level_of(grid: Grid, u: float) -> Level:
    """The level of a noise u off the grid."""
    if u == inf:
        raise ValueError(INFINITE)
    t = float(grid.schedule.t_of_lam(-log(u)))
    return Level(t, float(grid.schedule.alpha(t)), float(grid.schedule.sigma(t)), u)


def towards(D: Symbol, x: Symbol, at: Level, alpha: float, u: float) -> Symbol:
    """x moved along the line through the data prediction D to the noise u: y' = D + u'/u (y - D), times alpha'.

    Every first-order step is this one; it is exact at both ends of every schedule.
    """
    return alpha * u / at.sigma * x + alpha * (1 - u / at.u) * D


def along(e: Symbol, x: Symbol, at: Level, alpha: float, u: float) -> Symbol:
    """x moved along the slope e to the noise u: y' = y + (u' - u) e, times alpha'."""
    if at.alpha == 0:
        raise ValueError(INFINITE)
    return alpha / at.alpha * x + alpha * (u - at.u) * e


def ancestral(u: float, u_next: float, eta: float) -> tuple[float, float]:
    """(u_down, u_up): the noise to solve the ODE to, and the fresh noise that brings it back up to u_next.

    u_down^2 + u_up^2 = u_next^2; eta = 1 is DDPM's ancestral sampling.
    """
    ratio = u_next / u
    fresh = eta**2 * (1 - ratio) * (1 + ratio)
    return u_next * sqrt(1 - fresh), u_next * sqrt(fresh)


def with_noise(p: Tracer, x: Symbol, scale: float) -> Symbol:
    """x written down, with fresh noise where there is any."""
    return p.state(x + scale * p.noise() if scale > 0 else x)


@dataclass(frozen=True)
class Churn:
    """The noise added before each step, u to (1 + gamma) u where s_tmin <= u <= s_tmax.  Algorithm 2, lines 4 to 6."""

    name: str
    s_churn: float
    s_tmin: float
    s_tmax: float
    s_noise: float

    def __post_init__(self) -> None:
        for option in ("s_churn", "s_tmin", "s_noise"):
            if not getattr(self, option) >= 0:
                raise ValueError(f"{self.name}: {option}={getattr(self, option)} must be at least 0")
        if not self.s_tmax >= self.s_tmin:
            raise ValueError(f"{self.name}: s_tmax={self.s_tmax} must be at least s_tmin, which is {self.s_tmin}")

    def __call__(self, p: Tracer, grid: Grid, i: int, x: Symbol) -> tuple[Symbol, Level]:
        """The state and the level that step i starts from."""
        at = level(grid, i)
        gamma = min(self.s_churn / grid.steps, GAMMA_MAX) if self.s_tmin <= at.u <= self.s_tmax else 0.0
        if gamma == 0:
            return x, at
        u_hat, u_max = (1 + gamma) * at.u, exp(-float(grid.schedule.lam(grid.schedule.t_max)))
        if u_hat > u_max:
            raise ValueError(
                f"{self.name}: with s_tmax={self.s_tmax} churn leads to sigma/alpha = {u_hat:.6g}, beyond the "
                f"schedule's {u_max:.6g}: take an s_tmax below {u_max / (1 + gamma):.6g}"
            )
        hat = level_of(grid, u_hat)
        x = hat.alpha / at.alpha * x
        if self.s_noise > 0:
            x += hat.alpha * self.s_noise * at.u * sqrt(gamma * (2 + gamma)) * p.noise()
        return p.state(x), hat
