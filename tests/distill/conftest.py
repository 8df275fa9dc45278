"""What several tests of students begin from: a network that has learned the ring, and how near two draws of it lie."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distill.trainer import Recipe, train
from tests.distill.toys import EDM, Ring, ring, sliced_w2, small


def _denoising(network: nn.Module, generator: torch.Generator) -> Tensor:
    """Regression on the ring's exact D, weighted as EDM weights it, at sigma spread evenly in log sigma."""
    uniform = torch.rand(512, generator=generator)
    t = EDM.sigma_min * (EDM.sigma_max / EDM.sigma_min) ** uniform
    z = torch.randn(512, 2, generator=generator)
    x = ring(int(torch.randint(2**31, (1,), generator=generator)), 512) + t[:, None] * z
    weight = (t**2 + network.sigma_data**2) / (t * network.sigma_data) ** 2
    return (weight[:, None] * (network(x, t) - Ring()(x, t)).square()).mean()


@pytest.fixture(scope="session")
def _ring_trained() -> nn.Module:
    return train(small(), _denoising, Recipe(1000, 512, 1e-2, ema=0.99, warmup=50)).network


@pytest.fixture
def ring_network(_ring_trained: nn.Module) -> nn.Module:
    """toys.small(), trained on the ring: a copy for each test."""
    return copy.deepcopy(_ring_trained)


@pytest.fixture(scope="session")
def ring_floor() -> float:
    """Sliced W2 of two draws of the ring, 4096 points each: what no student is expected to fall below."""
    return float(np.mean([sliced_w2(ring(2 * k, 4096), ring(2 * k + 1, 4096)) for k in range(8)]))
