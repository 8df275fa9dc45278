"""DPM-Solver-v3's statistics l, s and b of a checkpoint.  Zheng et al. 2023, arXiv 2310.13268, Section 3.

At nodes uniform in lambda, over x = alpha x_0 + sigma z, each pixel by itself:
    l = E[sigma d eps/dx], the Jacobian's diagonal, which v sigma (d eps/dx v) estimates, v being random signs;
    s = Cov(f, f')/Var(f) and b = E[f'] - s E[f], the line that tells f' from f = (sigma eps - l x)/alpha,
where f' is the derivative in lambda along the ODE.  A node takes a call and a tangent a sample for l, two calls and a
tangent for s and b.  The data x_0 are samples of the checkpoint itself, so no data set is needed.

`floor` is what the error falls to with many calls: that of 100, on starts that nothing was learned from.  With `fresh`
draws at each node, as the authors take them, l, s and b jump from node to node by their sampling noise, and that is the
floor.  Draws that all nodes share leave no jumps, at no cost.  `smooth` is the width in nodes of a Gaussian filter over
l, before f is made of it, and over s and b; 0 leaves them raw, as the authors do.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from scipy.integrate import trapezoid
from scipy.ndimage import gaussian_filter1d
from torch import Tensor
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

import solvers
from solvers import noise
from solvers.dpm_solver_v3 import dpm_solver_v3 as solver
from solvers.grid import make_grid
from solvers.learned import Cost, Learned
from solvers.model import Cond, Denoiser, levels
from solvers.plan import Plan
from solvers.schedule import Array, Schedule
from solvers.tracer import Method
from solvers.tune.base import Finding, Notes, Problem, tuner
from solvers.tune.reference import reference

DATA = "unipc", 50  # the solver that makes the data, and its calls
WINDOW = 5  # nodes on either side that l' is averaged over, as the authors do
STREAM, STREAMS = 2**34, 3  # of draws, behind all others, and how many a node has: z and v for l, z for s and b
ROUNDING = 1e-12  # of f^2: what its mean and the square of f's differ by where f is the same for all samples
GROWTH = 300  # of log e^S: what float64 has room for
HELD_OUT, FEW, MANY = 128, 10, 100  # samples that the statistics are tried on, and with how many calls
BASE = "unipc"  # predictor and corrector of order 3 too, in data prediction: l = 1, s = b = 0


@dataclass(frozen=True)
class Level:
    """A node's time () and levels; along the ODE dt/dlambda = dt and dx/dlambda = drift x - sigma eps."""

    t: Tensor
    alpha: float
    sigma: float
    dt: Tensor
    drift: float

    @classmethod
    def of(cls, schedule: Schedule, t: float) -> "Level":
        at = torch.tensor(t, dtype=torch.float64)
        (alpha, sigma), (d_alpha, d_sigma) = jvp(lambda t: levels(schedule, t), (at,), (torch.ones_like(at),))[:2]
        dt = 1 / (d_alpha / alpha - d_sigma / sigma)
        return cls(at, float(alpha), float(sigma), dt, float(d_alpha / alpha * dt))

    def state(self, x_0: Tensor, z: Tensor) -> Tensor:
        return self.alpha * x_0 + self.sigma * z


@torch.no_grad()
def own_slope(denoiser: Denoiser, at: Level, x: Tensor, v: Tensor, cond: Cond) -> Tensor:
    """v sigma (d eps/dx v) at x for signs v, both (B, *shape): its mean is l."""
    denoiser.tangents += len(x) * denoiser.cost(float(at.t))
    t = at.t.to(x.device)
    slope = _tangent(lambda x: denoiser.differentiable(x, t, "noise", cond), (x,), (v,))
    return at.sigma * v.double() * slope.double()


@torch.no_grad()
def noise_along(denoiser: Denoiser, at: Level, x: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
    """eps at x (B, *shape), and its derivative in lambda along the ODE."""
    denoiser.tangents += len(x) * denoiser.cost(float(at.t))
    eps = denoiser(x, float(at.t), "noise", cond)
    t, dt, dx = at.t.to(x.device), at.dt.to(x.device), at.drift * x - at.sigma * eps
    slope = _tangent(lambda x, t: denoiser.differentiable(x, t, "noise", cond), (x, t), (dx, dt))
    return eps.double(), slope.double()


def _tangent(f: Callable[..., Tensor], at: tuple[Tensor, ...], along: tuple[Tensor, ...]) -> Tensor:
    """The derivative of f along a direction; attention must be plain products, as its fused kernels have none."""
    with sdpa_kernel(SDPBackend.MATH):
        slope: Tensor = jvp(f, at, along)[1]
    return slope


def moments(at: Level, l: Tensor, dl: Tensor, x: Tensor, eps: Tensor, d_eps: Tensor) -> Tensor:  # noqa: E741
    """f, f', f^2 and f f' of each sample: (4, B, *shape)."""
    u, y = at.sigma / at.alpha, x.double() / at.alpha
    f = u * eps - l * y
    df = u * ((l - 1) * eps + d_eps) - dl * y
    return torch.stack([f, df, f * f, f * df])


def slope_of(l: Array, lam: Array) -> Array:  # noqa: E741
    """l' (nodes, *shape): central differences, then the mean over the nodes around."""
    slope = np.gradient(l, lam[1] - lam[0], axis=0)
    return np.array([slope[max(0, j - WINDOW) : j + WINDOW + 1].mean(0) for j in range(len(l))])


def line(means: Array) -> tuple[Array, Array]:
    """s and b from the means (4, nodes, *shape) of f, f', f^2 and f f'; where f varies by rounding alone, s is 0."""
    f, df, ff, fdf = means
    variance = ff - f * f
    s = np.divide(fdf - f * df, variance, out=np.zeros_like(f), where=variance > ROUNDING * ff)
    return s, df - s * f


def smoothed(c: Array, width: float) -> Array:
    return np.asarray(gaussian_filter1d(c, width, axis=0, mode="nearest")) if width else c


@dataclass(frozen=True)
class Measurement:
    """The times of the nodes, and the data to be averaged over in batches (number of the first, x_0, conditions).

    `fresh` says whether each node has draws of its own.
    """

    problem: Problem
    times: Array
    batches: list[tuple[int, Tensor, Cond]]
    fresh: bool

    def l(self, j: int) -> Tensor:  # noqa: E743
        """l at node j (*shape)."""
        at = Level.of(self.problem.schedule, self.times[j])
        total = torch.zeros(self.problem.shape, dtype=torch.float64)
        for first, x_0, cond in self.batches:
            x, v = at.state(x_0, self._normal(j, 0, first, x_0)), self._signs(j, 1, first, x_0)
            total += own_slope(self.problem.denoiser, at, x, v, cond).sum(0).cpu()
        return total / self._samples

    def moments(self, j: int, l: Array, dl: Array) -> Tensor:  # noqa: E741
        """The means of f, f', f^2 and f f' at node j (4, *shape)."""
        at = Level.of(self.problem.schedule, self.times[j])
        total = torch.zeros(4, *self.problem.shape, dtype=torch.float64)
        for first, x_0, cond in self.batches:
            x = at.state(x_0, self._normal(j, 2, first, x_0))
            eps, d_eps = noise_along(self.problem.denoiser, at, x, cond)
            l_j, dl_j = (torch.from_numpy(c[j]).to(eps) for c in (l, dl))
            total += moments(at, l_j, dl_j, x, eps, d_eps).sum(1).cpu()
        return total / self._samples

    @property
    def _samples(self) -> int:
        return sum(len(x_0) for _, x_0, _ in self.batches)

    def _stream(self, j: int, which: int) -> int:
        return STREAM + which + (STREAMS * j if self.fresh else 0)

    def _normal(self, j: int, which: int, first: int, like: Tensor) -> Tensor:
        seed, stream = self.problem.seed, self._stream(j, which)
        return torch.from_numpy(noise.normal(seed, stream, first, len(like), self.problem.shape)).to(like)

    def _signs(self, j: int, which: int, first: int, like: Tensor) -> Tensor:
        seed, stream = self.problem.seed, self._stream(j, which)
        u = noise.uniform(seed, stream, first, len(like), math.prod(self.problem.shape))
        return torch.from_numpy(np.where(u < 0.5, -1.0, 1.0)).reshape(like.shape).to(like)


def data(problem: Problem, samples: int, batch: int, known: Tensor | None) -> list[tuple[int, Tensor, Cond]]:
    """The checkpoint's own samples with their conditions, in batches; sampled unless they are known."""
    plan = solvers.plan(DATA[0], problem.schedule, DATA[1], grid="logsnr", denoise_to_zero=True)
    batches = []
    for first in range(0, samples, batch):
        x_T, cond = problem.start(first, min(batch, samples - first), problem.schedule.t_max)
        x_0 = solvers.sample(plan, problem.denoiser, x_T, cond=cond) if known is None else known[first : first + batch]
        batches.append((first, x_0.to(x_T), cond))
    return batches


def errors(problem: Problem, arrays: Mapping[str, Array], first: int) -> tuple[float, float, float]:
    """Distance from the exact solution, of samples `first` on: the base with few calls, v3 with few and with many."""
    schedule = problem.schedule
    x_T, cond = problem.start(first, HELD_OUT, schedule.t_max)
    exact = reference(problem.denoiser, x_T, cond, schedule.t_max, schedule.t_end, MANY).at(schedule.t_end)
    learned = Learned(
        solver.name, "", "", schedule, None, problem.guidance, "", "", problem.seed, {}, Cost(), (), {}, arrays
    )  # fmt: skip
    few, many = (make_grid(solver.default_grid(schedule), schedule, calls) for calls in (FEW, MANY))

    def error(plan: Plan) -> float:
        x = solvers.sample(plan, problem.denoiser, x_T, cond=cond)
        return float((x - exact).double().square().mean().sqrt())

    base = cast(Method, solvers.method(BASE)).on(few, {})
    return error(base), error(solver.on(few, {}, learned)), error(solver.on(many, {}, learned))


def check(problem: Problem, nodes: int, samples: int, smooth: float, batch: int) -> None:
    """Raises ValueError for settings or a schedule that no statistics can be taken with, or a metric to search for."""
    schedule = problem.schedule
    if problem.metric:
        raise ValueError("dpm_solver_v3 learns averages and searches for nothing: give no metric")
    for name, value, least in (
        ("nodes", nodes, 2 * WINDOW),
        ("samples", samples, 2),
        ("batch", batch, 1),
        ("smooth", smooth, 0),
    ):
        if not value >= least:
            raise ValueError(f"tuning dpm_solver_v3: {name}={value} must be at least {least}")
    if not np.isfinite(schedule.lam([schedule.t_max, schedule.t_end])).all():
        raise ValueError(f"tuning dpm_solver_v3: {schedule} has no finite lambda at t = {schedule.t_max}")


def check_found(lam: Array, s: Array) -> None:
    """Raises ValueError for an s so wild that the solver's e^S would overflow."""
    reach = float(np.abs(trapezoid(np.abs(s), lam, axis=0)).max())
    if reach > GROWTH:
        raise ValueError(
            f"tuning dpm_solver_v3: the integral of |s| is {reach:.0f}, more than {GROWTH}: "
            "take more samples or nodes, or smooth"
        )


@tuner("dpm_solver_v3", any_budget=True)
def dpm_solver_v3(
    problem: Problem,
    nfe: None,
    notes: Notes,
    nodes: int = 120,  # the solver's trapezoid sums then err by 1e-4 of data of size 1; the authors take 1200 or 120
    samples: int = 1024,
    fresh: bool = False,
    smooth: float = 0.0,
    batch: int = 256,
) -> Finding:
    schedule = problem.schedule
    check(problem, nodes, samples, smooth, batch)
    lam = np.linspace(float(schedule.lam(schedule.t_max)), float(schedule.lam(schedule.t_end)), nodes + 1)
    times = schedule.t_of_lam(lam)
    times[0], times[-1] = schedule.t_max, schedule.t_end  # a round trip through lambda costs an ulp
    kept = notes.read() or {"x_0": None, "l": [], "moments": []}
    batches = data(problem, samples, batch, kept["x_0"])
    kept["x_0"] = torch.cat([x_0 for _, x_0, _ in batches]).cpu()
    at = Measurement(problem, times, batches, fresh)
    for j in range(len(kept["l"]), nodes + 1):
        notes.write(kept)
        kept["l"].append(at.l(j))
    l = smoothed(torch.stack(kept["l"]).numpy(), smooth)  # noqa: E741
    dl = slope_of(l, lam)
    for j in range(len(kept["moments"]), nodes + 1):
        notes.write(kept)
        kept["moments"].append(at.moments(j, l, dl))
    notes.write(kept)
    s, b = (smoothed(c, smooth) for c in line(torch.stack(kept["moments"], 1).numpy()))
    check_found(lam, s)
    arrays = {"lam": lam, "l": l, "s": s, "b": b}
    base, found, floor = errors(problem, arrays, samples)
    return Finding(
        base=BASE,
        values={"data": f"{DATA[0]}, {DATA[1]} calls", "floor": floor},
        curve=((0, base), (problem.cost.calls, found)),
        objective=f"truncation error at {FEW} calls (tried, not searched for)",
        arrays=arrays,
    )
