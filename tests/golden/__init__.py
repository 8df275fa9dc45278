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

    def array(self, name: str) -> NDArray[np.float64]:
        return _arrays()[f"{self.id}/{name}"]

    @property
    def x_init(self) -> Tensor:
        """The recorded start; the VP family shares one."""
        arrays = _arrays()
        return torch.from_numpy(arrays.get(f"{self.id}/x_init", arrays["x_T"]))

    @property
    def x_final(self) -> Tensor:
        return torch.from_numpy(self.array("x_final"))

    @property
    def guidance(self) -> float:
        scale = self.manifest.get("guidance") or self.manifest["options"].get("guidance_scale")
        return float(scale or 1)

    @property
    def schedule(self) -> solvers.Schedule:
        if (self.array("alpha") == 1).all():
            sigma = self.array("sigma")
            return solvers.EDM(sigma_max=float(sigma[0]))
        return solvers.VPLinear() if "vplin" in self.id else solvers.VPDiscrete.linear()

    @property
    def times(self) -> list[float]:
        """The recorded grid, in the schedule's own time."""
        with np.errstate(divide="ignore"):
            lam = np.log(self.array("alpha") / self.array("sigma"))
        return np.unique(self.schedule.t_of_lam(lam))[::-1].tolist()  # Heun's recordings repeat their nodes

    def denoiser(self) -> solvers.Denoiser:
        guidance = solvers.Guidance(self.guidance, {"y": NO_CLASS})
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


def cases() -> list[Case]:
    return [Case(entry) for entry in json.loads((HERE / "golden.json").read_text())]
