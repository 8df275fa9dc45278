"""Denoising score matching with EDM preconditioning, the loss every teacher is trained with.

Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", arXiv 2206.00364.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


def distinct(t: Tensor) -> Tensor:
    """Of numbers t (B,), one a sample: (1,) where it is one, expanded, else t.

    The stride tells: to compare the numbers would wait for a GPU, and could not be captured in a graph.
    """
    return t[:1] if t.stride(0) == 0 else t


class Preconditioned(nn.Module):
    """D(x; sigma) = c_skip x + c_out F(c_in x, c_noise), Eq. (7), Table 1: a data prediction for x = x0 + sigma n."""

    def __init__(self, network: nn.Module, sigma_data: float) -> None:
        super().__init__()
        self.network = network
        self.sigma_data = sigma_data

    def forward(self, x: Tensor, sigma: Tensor, **cond: Tensor) -> Tensor:
        """x (B, *shape), sigma (B,) in data units -> D (B, *shape), in x's dtype whatever the network's own is."""
        level = distinct(sigma)
        s = level.reshape(-1, *[1] * (x.ndim - 1))
        total = (s**2 + self.sigma_data**2).sqrt()
        own = next((p.dtype for p in self.network.parameters()), x.dtype)
        F = self.network((x / total).to(own), (level.log() / 4).expand(len(x)), **cond).to(x.dtype)
        return (self.sigma_data / total) ** 2 * x + (s * self.sigma_data / total) * F


@dataclass(frozen=True)
class DenoisingLoss:
    """lambda(sigma) ||D(x0 + sigma n; sigma) - x0||^2 with ln sigma ~ N(P_mean, P_std^2), Eq. (2) and Table 1."""

    P_mean: float = -1.2
    P_std: float = 1.2

    def __call__(self, D: Preconditioned, x0: Tensor, cond: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """Mean loss over a batch of clean data x0 (B, *shape); every draw comes from `generator`, of its device."""
        sigma = (self.P_mean + self.P_std * torch.randn(len(x0), generator=generator, device=x0.device)).exp()
        s = sigma.reshape(-1, *[1] * (x0.ndim - 1))
        weight = (s**2 + D.sigma_data**2) / (s * D.sigma_data) ** 2
        x = x0 + s * torch.randn(x0.shape, generator=generator, device=x0.device)
        return (weight * (D(x, sigma, **cond) - x0) ** 2).mean()
