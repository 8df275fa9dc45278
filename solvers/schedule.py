"""Noise schedules: x_t = alpha(t) x_0 + sigma(t) eps, with lambda = log(alpha / sigma), all in float64.

Times run from `t_max` (noise) down to `t_end` (data); t = 0 is the data itself, where lambda is infinite.
"""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def _float64(t: ArrayLike) -> Array:
    return np.asarray(t, dtype=np.float64)


@dataclass(frozen=True)
class Schedule(ABC):
    """What a schedule must know; subclasses are frozen dataclasses whose fields are their parameters."""

    @property
    @abstractmethod
    def t_max(self) -> float:
        """Where sampling starts."""

    @property
    @abstractmethod
    def t_end(self) -> float:
        """The smallest time at which the network may be called."""

    @abstractmethod
    def alpha(self, t: ArrayLike) -> Array:
        """Signal level alpha(t)."""

    @abstractmethod
    def sigma(self, t: ArrayLike) -> Array:
        """Noise level sigma(t)."""

    @abstractmethod
    def lam(self, t: ArrayLike) -> Array:
        """Half the log signal-to-noise ratio, log(alpha / sigma); +inf at t = 0."""

    @abstractmethod
    def t_of_lam(self, lam: ArrayLike) -> Array:
        """The inverse of `lam`."""

    def prior_std(self, t: float) -> float:
        """Standard deviation of the noise that sampling starts from at time t; 1 unless the noise explodes."""
        return 1.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, read back by `schedule_from_dict`."""
        return {"name": type(self).__name__, **asdict(self)}


class _VP(Schedule):
    """Variance preserving: alpha^2 + sigma^2 = 1, so log alpha(t) says everything."""

    @abstractmethod
    def log_alpha(self, t: ArrayLike) -> Array: ...

    @abstractmethod
    def t_of_log_alpha(self, log_alpha: Array) -> Array: ...

    def alpha(self, t: ArrayLike) -> Array:
        return np.exp(self.log_alpha(t))

    def sigma(self, t: ArrayLike) -> Array:
        return np.sqrt(-np.expm1(2 * self.log_alpha(t)))

    def lam(self, t: ArrayLike) -> Array:
        log_alpha = self.log_alpha(t)
        with np.errstate(divide="ignore"):
            return log_alpha - 0.5 * np.log(-np.expm1(2 * log_alpha))

    def t_of_lam(self, lam: ArrayLike) -> Array:
        return self.t_of_log_alpha(-0.5 * np.logaddexp(0, -2 * _float64(lam)))


@dataclass(frozen=True)
class VPLinear(_VP):
    """beta(t) = beta_0 + (beta_1 - beta_0) t on t in [0, 1].  Song et al. 2021, arXiv 2011.13456, Eq. (32)."""

    beta_0: float = 0.1
    beta_1: float = 20.0

    t_max = 1.0
    t_end = 1e-3

    def log_alpha(self, t: ArrayLike) -> Array:
        t = _float64(t)
        return -0.25 * t**2 * (self.beta_1 - self.beta_0) - 0.5 * t * self.beta_0

    def t_of_log_alpha(self, log_alpha: Array) -> Array:
        c = -4 * (self.beta_1 - self.beta_0) * log_alpha
        return c / ((np.sqrt(self.beta_0**2 + c) + self.beta_0) * (self.beta_1 - self.beta_0))


@dataclass(frozen=True)
class VPCosine(_VP):
    """alpha(t) proportional to cos(pi/2 (t + s)/(1 + s)).  Nichol & Dhariwal 2021, arXiv 2102.09672, Eq. (17)."""

    s: float = 0.008

    t_max = 0.9946  # beyond it alpha is too small to divide by (Lu et al. 2022, arXiv 2206.00927, App. D)
    t_end = 1e-3

    def _cos(self, t: ArrayLike) -> Array:
        return np.cos(0.5 * np.pi * (_float64(t) + self.s) / (1 + self.s))

    def log_alpha(self, t: ArrayLike) -> Array:
        exact = np.log(self._cos(t)) - np.log(self._cos(0))
        return np.asarray(np.minimum(exact, 0))  # at t = 0 rounding may exceed log 1

    def t_of_log_alpha(self, log_alpha: Array) -> Array:
        t = 2 * (1 + self.s) / np.pi * np.arccos(np.exp(log_alpha) * self._cos(0)) - self.s
        return np.where(log_alpha == 0, 0.0, t)


@dataclass(frozen=True)
class VPDiscrete(_VP):
    """DDPM's betas at t_n = (n + 1)/N, n = 0..N-1; between the nodes log alpha is piecewise linear in t.

    The clean image is the node t = 0.  Lu et al. 2022, arXiv 2206.00927, App. D.2.
    """

    betas: tuple[float, ...]

    t_max = 1.0

    @classmethod
    def linear(cls, beta_start: float = 1e-4, beta_end: float = 0.02, N: int = 1000) -> "VPDiscrete":
        """Ho et al. 2020's betas, equally spaced."""
        return cls(tuple(np.linspace(beta_start, beta_end, N).tolist()))

    @classmethod
    def scaled_linear(cls, beta_start: float = 0.00085, beta_end: float = 0.012, N: int = 1000) -> "VPDiscrete":
        """Stable Diffusion's betas, whose square roots are equally spaced."""
        return cls(tuple((np.linspace(beta_start**0.5, beta_end**0.5, N) ** 2).tolist()))

    @property
    def t_end(self) -> float:
        return 1 / len(self.betas)

    @cached_property
    def _nodes(self) -> tuple[Array, Array]:
        log_alpha = 0.5 * np.cumsum(np.log1p(-np.array(self.betas)))
        return np.linspace(0, 1, len(self.betas) + 1), np.concatenate([[0.0], log_alpha])

    def log_alpha(self, t: ArrayLike) -> Array:
        return np.interp(_float64(t), *self._nodes)

    def t_of_log_alpha(self, log_alpha: Array) -> Array:
        t, nodes = self._nodes
        return np.asarray(np.interp(-log_alpha, -nodes, t))


@dataclass(frozen=True)
class EDM(Schedule):
    """Variance exploding with t = sigma: x = x_0 + t eps.  Karras et al. 2022, arXiv 2206.00364, Table 1."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    @property
    def t_max(self) -> float:
        return self.sigma_max

    @property
    def t_end(self) -> float:
        return self.sigma_min

    def alpha(self, t: ArrayLike) -> Array:
        return np.ones_like(_float64(t))

    def sigma(self, t: ArrayLike) -> Array:
        return _float64(t)

    def lam(self, t: ArrayLike) -> Array:
        with np.errstate(divide="ignore"):
            return np.asarray(-np.log(_float64(t)))

    def t_of_lam(self, lam: ArrayLike) -> Array:
        return np.exp(-_float64(lam))

    def prior_std(self, t: float) -> float:
        return t


@dataclass(frozen=True)
class RectifiedFlow(Schedule):
    """Straight lines between data and noise: x = (1 - t) x_0 + t eps.  Liu et al. 2022, arXiv 2209.03003.

    `shift` is what the model's own "shifted" grid uses: 3 for Stable Diffusion 3, for instance.
    """

    shift: float = 1.0

    t_max = 1.0
    t_end = 1e-3

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise ValueError(f"shift must be positive, not {self.shift}")

    def alpha(self, t: ArrayLike) -> Array:
        return 1 - _float64(t)

    def sigma(self, t: ArrayLike) -> Array:
        return _float64(t)

    def lam(self, t: ArrayLike) -> Array:
        with np.errstate(divide="ignore"):
            return np.log1p(-_float64(t)) - np.log(_float64(t))

    def t_of_lam(self, lam: ArrayLike) -> Array:
        return np.exp(-np.logaddexp(0, _float64(lam)))


SCHEDULES: dict[str, type[Schedule]] = {c.__name__: c for c in (VPLinear, VPCosine, VPDiscrete, EDM, RectifiedFlow)}


def schedule_from_dict(d: dict[str, Any]) -> Schedule:
    """Read what `Schedule.to_dict` wrote; raises ValueError for a name it does not know."""
    if d.get("name") not in SCHEDULES:
        raise ValueError(f"unknown schedule {d.get('name')!r}: known: {', '.join(SCHEDULES)}")
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in d.items() if k != "name"}
    return SCHEDULES[d["name"]](**fields)
