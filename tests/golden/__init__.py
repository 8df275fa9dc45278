"""The golden cases: what the official implementations computed in float64 on an exact Gaussian mixture."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import solvers
from bench.checkpoints.gmm import GaussianMixture, OnSchedule

HERE = Path(__file__).parent
LABELS = torch.arange(16) % 3
NO_CLASS = 3


@dataclass(frozen=True)
class Case:
    """One recorded run: its manifest entry and its arrays."""

    manifest: dict[str, Any]

    @property
    def id(self) -> str:
        return self.manifest["id"]

    @property
    def options(self) -> dict[str, Any]:
        return self.manifest["options"]

    def has(self, name: str) -> bool:
        return name in self.manifest["arrays"]

    def array(self, name: str) -> NDArray[np.float64]:
        return _arrays()[self.manifest["arrays"][name]]

    @property
    def x_init(self) -> Tensor:
        return torch.from_numpy(self.array("x_init"))

    @property
    def x_final(self) -> Tensor:
        return torch.from_numpy(self.array("x_final"))

    @property
    def tolerance(self) -> float:
        return self.manifest.get("tolerance_max_abs", 1e-9)

    @property
    def guidance(self) -> float:
        scale = self.manifest.get("guidance") or self.options.get("guidance_scale")
        return float(scale or 1)

    @property
    def schedule(self) -> solvers.Schedule:
        """One that passes through the recorded levels; which one it is does not matter to the arithmetic."""
        alpha, sigma = self.array("alpha"), self.array("sigma")
        if (alpha == 1).all():
            return solvers.EDM(sigma_max=2 * float(sigma[0]))  # room for what churn adds
        if np.allclose(alpha + sigma, 1):
            return solvers.RectifiedFlow()
        if "scaled_linear" in self.manifest["schedule"]["name"]:
            return solvers.VPDiscrete.scaled_linear()
        return solvers.VPLinear() if "vplin" in self.id else solvers.VPDiscrete.linear()

    def times_of(self, alpha: NDArray[np.float64], sigma: NDArray[np.float64]) -> list[float]:
        """The schedule's own times of recorded levels, in their order."""
        with np.errstate(divide="ignore"):
            return self.schedule.t_of_lam(np.log(alpha / sigma)).tolist()

    @property
    def times(self) -> list[float]:
        """The recorded grid, from noise to data; a node that was recorded twice (Heun's) stands once."""
        return sorted(set(self.times_of(self.array("alpha"), self.array("sigma"))), reverse=True)

    @property
    def call_times(self) -> list[float]:
        """Where the network was called, in order."""
        return self.times_of(self.array("call_alpha"), self.array("call_sigma"))

    @property
    def noise(self) -> Tensor:
        """The recorded draws, in order: this run's own, or the stream that the runs of the sigma family share."""
        return torch.from_numpy(self.array("noise") if self.has("noise") else _arrays()["noise_stream"])

    def denoiser(self) -> solvers.Denoiser:
        guidance = solvers.Guidance(self.guidance, {"y": NO_CLASS})
        if isinstance(self.schedule, solvers.RectifiedFlow):
            return solvers.Denoiser(velocity, self.schedule, "velocity", guidance)
        return solvers.Denoiser(OnSchedule(mixture(), self.schedule), self.schedule, "noise", guidance)

    @property
    def cond(self) -> dict[str, Tensor]:
        """The recorded classes where the run was guided; none where it was not."""
        return {"y": LABELS} if self.guidance != 1 else {}


@cache
def _arrays() -> dict[str, NDArray[np.float64]]:
    return dict(np.load(HERE / "golden.npz"))


@cache
def mixture() -> GaussianMixture:
    """The mixture all recordings ran on."""
    return GaussianMixture.random(0)


def velocity(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
    """The mixture's eps - x_0 on rectified flow, also at t = 1, where eps is x and x_0 the mean of the class."""
    s, exact = float(t[0]), mixture()
    eps = exact.noise(x, 1 - s, s, y)
    if s < 1:
        return (eps - x) / (1 - s)
    labels = torch.full((len(x),), NO_CLASS) if y is None else y
    member = (exact.component_class == labels[:, None]) | (labels[:, None] == NO_CLASS)
    weights = exact.weights * member
    return eps - (weights @ exact.means / weights.sum(1, keepdim=True)).reshape(x.shape)


@cache
def cases() -> list[Case]:
    return [Case(entry) for entry in json.loads((HERE / "golden.json").read_text())]
