"""The trajectories that tuners learn from: the ODE solved once with many calls, its states at any time.

With y = x/alpha and u = sigma/alpha the ODE is dy/dlog u = y - D, so the calls of a fine plan give y and its slope at
each of its times, and a cubic Hermite polynomial through both gives y between them.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import solvers
from solvers.model import Cond, Denoiser
from solvers.plan import Evaluate, Instruction, Plan
from solvers.schedule import Array, Schedule


@dataclass(frozen=True)
class Reference:
    """States of the ODE's solution: y = x/alpha and dy/dlog u at rising lambda, each (nodes, B, *shape)."""

    schedule: Schedule
    lam: Array
    y: Tensor
    slope: Tensor

    def at(self, t: float) -> Tensor:
        """The state x (B, *shape) at time t between the first and the last."""
        lam = float(self.schedule.lam(t))
        i = int(np.clip(np.searchsorted(self.lam, lam) - 1, 0, len(self.lam) - 2))
        h = self.lam[i + 1] - self.lam[i]
        s = (lam - self.lam[i]) / h
        y = (1 + 2 * s) * (1 - s) ** 2 * self.y[i] + s**2 * (3 - 2 * s) * self.y[i + 1]
        y = y - h * (s * (1 - s) ** 2 * self.slope[i] + s**2 * (s - 1) * self.slope[i + 1])  # lambda is -log u
        x: Tensor = float(self.schedule.alpha(t)) * y
        return x


def reference(denoiser: Denoiser, x_T: Tensor, cond: Cond, t_start: float, t_end: float, calls: int = 64) -> Reference:
    """The solution from x_T (B, *shape) at t_start to t_end, by UniPC-3 on uniform lambda with `calls` calls a sample.

    64 are exact to 2e-4 of data of size 1 on both bundled checkpoints, guided or not; 100 to 5e-5.
    """
    plan = solvers.plan("unipc", denoiser.schedule, calls - 1, grid="logsnr", t_start=t_start, t_end=t_end)
    assert isinstance(plan, Plan)
    states, outputs = [x_T], []
    written: dict[int, Tensor] = {0: x_T}

    def keep(instruction: Instruction, x: Tensor) -> None:
        if isinstance(instruction, Evaluate):
            states.append(written[instruction.state])
            outputs.append(x.clone())
        else:
            written.clear()  # nothing but the newest state is evaluated
            written[instruction.out] = x.clone()

    x_0 = solvers.sample(plan, denoiser, x_T, callback=keep, cond=cond)
    with torch.no_grad():
        outputs.append(denoiser(x_0, t_end, "data", cond))
    alpha = torch.from_numpy(denoiser.schedule.alpha(plan.times)).to(x_T).reshape(-1, *[1] * x_T.ndim)
    y = torch.stack([*states[1:], x_0]) / alpha
    return Reference(denoiser.schedule, denoiser.schedule.lam(plan.times), y, y - torch.stack(outputs))
