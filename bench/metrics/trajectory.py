"""Trajectory error: how far a cell's samples lie from the exact solution of the same ODE from the same noise.

Paired sample by sample, so a few hundred samples rank solvers that a distance over thousands cannot tell apart.  The
reference is DOP853 (Hairer, Norsett & Wanner 1993) in float64, over y = x/alpha as a function of log(sigma/alpha):
dy/dlog u = u eps; for flows over x as a function of t, whose slope is the velocity.  A plan that ends on the data
(t = 0) is compared with the solution at the schedule's t_end followed by the denoising step that its last call is.
"""

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from scipy.stats.mstats import mjci

from bench.errors import UsageError
from bench.files import sha256
from bench.metrics.base import Context, Features, Metric, Value
from bench.metrics.features import FIRST as SAMPLES
from bench.sealed import CorruptError, read_arrays, write_arrays
from bench.stats import jackknife
from solvers import RectifiedFlow
from solvers.model import Prediction

Slope = Callable[[float, NDArray[np.float64]], NDArray[np.float64]]
RTOL = ATOL = 1e-5  # of states of size 1; two orders below the errors that are told apart


class TrajectoryError(Metric):
    """Root mean square and 95th percentile over samples of the per-sample RMS difference, in units of the data."""

    name = "trajectory"
    needs = "a sampler without noise of its own"
    of_ode = True
    gives = ("trajectory_rmse", "trajectory_p95")

    def __init__(self, context: Context, samples: int = SAMPLES) -> None:
        super().__init__(context, "first_states")
        if not 2 <= samples <= SAMPLES:
            raise UsageError(f"trajectory: samples={samples}: give 2 to {SAMPLES}, of the first of a cell's")
        self.samples = samples
        self._solutions: dict[str, NDArray[np.float64]] = {}

    def prepare(self, features: Features, plan_times: tuple[float, ...]) -> None:
        self._solution(plan_times[0], plan_times[-1], min(self.samples, len(features)))

    def evaluate(self, features: Features, plan_times: tuple[float, ...]) -> list[Value]:
        features = features[: self.samples]
        about, exact = self._solution(plan_times[0], plan_times[-1], len(features))
        squared = ((features.astype(np.float64) - exact) ** 2).mean(1)
        n, rmse = len(squared), float(np.sqrt(squared.mean()))
        per_sample = np.sqrt(squared)
        source = {"data": "DOP853 solution of the ODE", "rtol": RTOL, "n": n, "sha256": about}
        influence = (squared - rmse**2) / (2 * rmse) if rmse else np.zeros(n)
        values = [self.value(rmse, n, source, influence=influence, name="trajectory_rmse")]
        if n >= 20:  # below, no sample lies beyond the percentile
            p95, p95_se = _p95(per_sample), float(mjci(per_sample, [0.95])[0])
            parts = jackknife(lambda kept: _p95(per_sample[kept]), n)
            values.append(replace(self.value(p95, n, source, parts=parts, name="trajectory_p95"), se=p95_se))
        return values

    def _about(self, t_start: float, t_end: float, count: int) -> str:
        """SHA-256 of what defines a solution; the last bits of its numbers are a machine's own."""
        c = self.context
        guide, classes, prompts = c.task.guide, c.task.classes, c.task.prompts
        about = [c.checkpoint.digest, c.seed, guide.scale, guide.interval, t_start, t_end, count, RTOL]
        about += [classes] * (classes is not None) + [prompts and prompts.digest] * (prompts is not None)
        return sha256(json.dumps(about).encode())

    def _solution(self, t_start: float, t_end: float, count: int) -> tuple[str, NDArray[np.float64]]:
        """What defines it, and the final states (count, d), kept in memory and in the run's folder."""
        about = self._about(t_start, t_end, count)
        if about not in self._solutions:
            path = self.context.cache / f"trajectory-{about[:16]}.npz"
            try:
                exact = read_arrays(path)["exact"]
            except CorruptError:  # or not there
                exact = solve(self.context, t_start, t_end, count)
                write_arrays(path, {"exact": exact})
            self._solutions[about] = exact
        return about, self._solutions[about]


def _p95(x: NDArray[np.float64]) -> float:
    """The 95th percentile; numpy's own takes nine times as long for a few hundred numbers."""
    below, between = divmod(0.95 * (len(x) - 1), 1)
    low, high = np.partition(x, (k := int(below), k + 1))[k : k + 2]
    return float(low + between * (high - low))


@torch.no_grad()
def solve(context: Context, t_start: float, t_end: float, count: int = SAMPLES) -> NDArray[np.float64]:
    """The ODE's solution from samples 0 .. count - 1 of the seed, each on its condition: (count, d)."""
    checkpoint, schedule = context.checkpoint, context.checkpoint.schedule
    denoiser = checkpoint.denoiser(context.task, context.device, torch.float64)
    cond = checkpoint.conditions(context.task, context.seed, 0, count, context.device)
    x_T, t_last = checkpoint.latents(context.seed, 0, count, t_start), t_end or schedule.t_end
    batch = checkpoint.batch
    conditions = [{k: v[i : i + batch] for k, v in cond.items()} for i in range(0, count, batch)]

    def predict(x: NDArray[np.float64], t: float, kind: Prediction) -> NDArray[np.float64]:
        parts = zip(torch.from_numpy(x).reshape(x_T.shape).split(batch), conditions, strict=True)
        found = [denoiser(part.to(context.device), t, kind, given).cpu() for part, given in parts]
        return torch.cat(found).flatten().numpy()

    def slope(log_u: float, y: NDArray[np.float64]) -> NDArray[np.float64]:
        t = float(schedule.t_of_lam(-log_u))
        return np.exp(log_u) * predict(float(schedule.alpha(t)) * y, t, "noise")

    x = x_T.flatten().numpy()
    if isinstance(schedule, RectifiedFlow):  # which starts without signal: x/alpha would be infinite
        x = _integrate(lambda t, x: predict(x, t, "velocity"), x, t_start, t_last)
    else:
        first, last = (-float(schedule.lam(t)) for t in (t_start, t_last))
        y = _integrate(slope, x / float(schedule.alpha(t_start)), first, last)
        x = float(schedule.alpha(t_last)) * y
    return (predict(x, t_last, "data") if t_end == 0 else x).reshape(count, -1)


def _integrate(slope: Slope, y: NDArray[np.float64], first: float, last: float) -> NDArray[np.float64]:
    """The solution of dy/ds = slope(s, y) at `last`."""
    solution = solve_ivp(slope, (first, last), y, "DOP853", rtol=RTOL, atol=ATOL)
    if not solution.success:
        raise RuntimeError(f"the reference ODE could not be solved: {solution.message}")
    return np.asarray(solution.y[:, -1])
