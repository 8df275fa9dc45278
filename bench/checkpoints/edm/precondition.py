"""From a U-Net F to a data prediction, D(x; sigma) = c_skip x + c_out F(c_in x; c_noise).

Karras et al. 2022, arXiv 2206.00364, Eq. (7) and Table 1.  Every D here is sampled in sigma itself, whatever process
its network was trained in.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from bench.checkpoints.edm.arguments import Arguments, Number, Positive, Size
from bench.checkpoints.edm.layers import exact, inexact, one_hot

Scalings = tuple[Tensor | float, Tensor, Tensor | float, Tensor]  # c_skip, c_out, c_in, c_noise
USUAL = (0.002, 80.0)  # the noise levels that EDM samples between, where the network allows
IDDPM_FROM = 81.0  # where EDM starts with the table of improved DDPM, which goes on to 20,291


class Preconditioned(nn.Module, ABC):
    """D(x, t, y): x (B, C, R, R), t = sigma (B,), y (B,) int64 -> (B, C, R, R) in x's dtype.

    The U-Net beneath, `model`, runs in its own parameters' dtype; the scalings are taken in x's.  Label `label_dim`, or
    no y at all, is no class, for which networks get zeros in the place of one 1.
    """

    def __init__(self, model: nn.Module, label_dim: int) -> None:
        super().__init__()
        self.model = model
        self.label_dim = label_dim

    @property
    @abstractmethod
    def levels(self) -> tuple[float, float]:
        """The least and the greatest sigma that the network is sampled at."""

    @abstractmethod
    def scalings(self, sigma: Tensor) -> Scalings:
        """The four scalings at sigma (B, 1, 1, 1), of its shape, or floats where they are the same at any level."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        dtype = next(self.model.parameters()).dtype
        c_skip, c_out, c_in, c_noise = self.scalings(t.to(x.dtype).reshape(-1, 1, 1, 1))
        labels = None
        if self.label_dim:
            given = torch.full((len(x),), self.label_dim, device=x.device) if y is None else y
            labels = one_hot(given, self.label_dim).to(dtype)
        out = self.model((c_in * x).to(dtype), c_noise.flatten(), labels)
        return c_skip * x + c_out * out[:, : x.shape[1]].to(x.dtype)  # the rest, if any, is a learned variance


class VPArguments(Arguments):
    """beta(t) = beta_d t + beta_min on [0, 1], of which the network knows M labels."""

    beta_d: Positive = 19.9
    beta_min: Positive = 0.1
    M: Size = 1000
    epsilon_t: Positive = 1e-5


class VPPrecond(Preconditioned):
    """Variance preserving, Song et al. 2021, arXiv 2011.13456: F predicts the noise.

    It was trained down to t = 1e-5, and is sampled, as it was published, from t = 1 to 1e-3.
    """

    def __init__(self, model: nn.Module, a: VPArguments) -> None:
        super().__init__(model, a.label_dim)
        self.a = a

    @property
    def levels(self) -> tuple[float, float]:
        return self._sigma(max(1e-3, self.a.epsilon_t)), self._sigma(1.0)

    def _sigma(self, t: float) -> float:
        return math.sqrt(math.expm1(0.5 * self.a.beta_d * t**2 + self.a.beta_min * t))

    def scalings(self, sigma: Tensor) -> Scalings:
        a = self.a
        t = ((a.beta_min**2 + 2 * a.beta_d * (sigma**2).log1p()).sqrt() - a.beta_min) / a.beta_d
        return 1.0, -sigma, 1 / (sigma**2 + 1).sqrt(), (a.M - 1) * t


class VEArguments(Arguments):
    """The noise levels it was trained at."""

    sigma_min: Positive = 0.02
    sigma_max: Positive = 100.0


class VEPrecond(Preconditioned):
    """Variance exploding, Song et al. 2021, arXiv 2011.13456."""

    def __init__(self, model: nn.Module, a: VEArguments) -> None:
        super().__init__(model, a.label_dim)
        self.levels_of = (a.sigma_min, a.sigma_max)

    @property
    def levels(self) -> tuple[float, float]:
        return self.levels_of

    def scalings(self, sigma: Tensor) -> Scalings:
        return 1.0, sigma, 1.0, (0.5 * sigma).log()


class IDDPMArguments(Arguments):
    """What the table of M noise levels was made with, which files hold too."""

    C_1: Positive = 0.001
    C_2: Positive = 0.008
    M: Size = 1000


class IDDPMPrecond(Preconditioned):
    """Improved DDPM, Nichol & Dhariwal 2021, arXiv 2102.09672: F predicts the noise, and a variance that nobody needs.

    The network knows the M levels of `u` alone, and is told the nearest; EDM's sampler rounds its grid to them as well,
    so at other levels x and c_noise disagree a little.
    """

    def __init__(self, model: nn.Module, a: IDDPMArguments) -> None:
        super().__init__(model, a.label_dim)
        self.u = nn.Buffer(exact(torch.empty(a.M + 1)))
        self.M = a.M

    @property
    def levels(self) -> tuple[float, float]:
        u = inexact(self.u, torch.float64)
        return float(u[self.M - 1]), min(IDDPM_FROM, float(u[0]))

    def scalings(self, sigma: Tensor) -> Scalings:
        nearest = (sigma - inexact(self.u, sigma.dtype)).abs().argmin(-1, keepdim=True)
        return 1.0, -sigma, 1 / (sigma**2 + 1).sqrt(), (self.M - 1 - nearest).to(sigma.dtype)


class EDMArguments(Arguments):
    """The data's standard deviation, and bounds where there are any."""

    sigma_min: Number = 0.0
    sigma_max: float = math.inf
    sigma_data: Positive = 0.5


class EDMPrecond(Preconditioned):
    """EDM's own: input and target have variance 1 at every level."""

    def __init__(self, model: nn.Module, a: EDMArguments) -> None:
        super().__init__(model, a.label_dim)
        self.sigma_data = a.sigma_data
        self.bounds = (a.sigma_min, a.sigma_max)

    @property
    def levels(self) -> tuple[float, float]:
        return max(USUAL[0], self.bounds[0]), min(USUAL[1], self.bounds[1])

    def scalings(self, sigma: Tensor) -> Scalings:
        total = (sigma**2 + self.sigma_data**2).sqrt()
        return (self.sigma_data / total) ** 2, sigma * self.sigma_data / total, 1 / total, sigma.log() / 4
