"""What stands for the network while a search screens its candidates: the network, linearised about exact trajectories.

A sampler strays from the exact trajectory by little.  With y = x/alpha, and y* and D* the exact state and data
prediction at lambda (reference.py), take
    D(y) = D* + j (y - y*) + k |y - y*| z,    z standard normal
j(lambda) is the mean slope of all calls of the true evaluations so far, k(lambda) the size of what it leaves over: the
draws z keep a search from betting on errors that cancel.  Predicting a candidate's samples so costs no call.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from solvers.exponential import lagrange
from solvers.model import Denoiser
from solvers.schedule import Array
from solvers.tune.reference import Reference

GUESS = 0.3  # j and k before the first call
WIDTH = 0.4  # in lambda, over which calls are averaged
FLOOR = 0.01  # of the samples' size: smaller errors say little, since the reference has its own


@dataclass(frozen=True)
class Linearised:
    """The linearisation about `reference`; `seen` has a row of each call: lambda, means of dy^2, dy dD and dD^2."""

    reference: Reference
    seen: list[list[float]] = field(default_factory=list)

    def strayed(self, x: Tensor, t: float) -> tuple[float, Tensor, Tensor]:
        """lambda, y - y* and D* (B, *shape) at time t and state x; D* is a cubic through four of the reference's."""
        exact, schedule = self.reference, self.reference.schedule
        lam, alpha = float(schedule.lam(t)), float(schedule.alpha(t))
        i = int(np.clip(np.searchsorted(exact.lam, lam) - 2, 0, len(exact.lam) - 4))
        weights = lagrange(exact.lam[i : i + 4], np.array([lam]))[:, 0].tolist()
        D = [w * (exact.y[i + k] - exact.slope[i + k]) for k, w in enumerate(weights)]
        return lam, (x - exact.at(t)) / alpha, torch.stack(D).sum(0)

    def observe(self, x: Tensor, t: float, D: Tensor) -> None:
        """Take notice of a call: D is the network's data prediction at state x and time t."""
        lam, dy, exact = self.strayed(x, t)
        dD = D - exact
        self.seen.append([lam, *(float((a * b).mean()) for a, b in ((dy, dy), (dy, dD), (dD, dD)))])

    def slopes(self) -> Array:
        """lambda, j and k at a hundred levels, averaged over the calls seen nearby: (3, 100)."""
        lam = np.linspace(self.reference.lam[0], self.reference.lam[-1], 100)
        if not self.seen:
            return np.stack([lam, np.full(100, GUESS), np.full(100, GUESS)])
        at, yy, yD, DD = np.array(self.seen).T
        yy = yy + FLOOR**2 * float(self.reference.y[-1].pow(2).mean())
        distance = -0.5 * ((at - lam[:, None]) / WIDTH) ** 2
        near = np.exp(distance - distance.max(1, keepdims=True)) / yy
        near /= (near * yy).sum(1, keepdims=True)
        j = near @ yD
        return np.stack([lam, j, np.sqrt(np.maximum(near @ DD - j**2, 0))])

    def denoiser(self, slopes: Array, z: Tensor) -> Denoiser:
        """What a plan runs on in place of the network, its i-th call with the draws z[i] (calls, B, *shape)."""
        draws = iter(z)

        def network(x: Tensor, t: Tensor) -> Tensor:
            lam, dy, D = self.strayed(x, float(t[0]))
            j, k = (float(np.interp(lam, slopes[0], row)) for row in slopes[1:])
            size = dy.flatten(1).pow(2).mean(1).sqrt().reshape(-1, *[1] * (dy.ndim - 1))
            y: Tensor = D + j * dy + k * size * next(draws)
            return y

        return Denoiser(network, self.reference.schedule, "data")
