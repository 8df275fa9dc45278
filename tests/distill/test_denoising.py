"""Preconditioning and the denoising loss, against what is known in closed form."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from distill.denoising import DenoisingLoss, Preconditioned

LOSS = DenoisingLoss()
MEAN, STD = torch.tensor([0.4, -0.7, 1.1]), 0.75
N = 200_000


class Constant(nn.Module):
    """F = a constant; it keeps what it was called with."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value
        self.seen: tuple[Tensor, Tensor, dict[str, Tensor]] | None = None

    def forward(self, x: Tensor, c_noise: Tensor, **cond: Tensor) -> Tensor:
        self.seen = x, c_noise, cond
        return torch.full_like(x, self.value)


class Shrinking(nn.Module):
    """The exact denoiser of N(MEAN, STD^2 I), or one that shrinks or aims otherwise."""

    def __init__(self, shrink: float = 1.0, aim: float = 0.0) -> None:
        super().__init__()
        self.sigma_data = STD
        self.shrink, self.aim = shrink, aim

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        share = self.shrink * STD**2 / (STD**2 + sigma[:, None] ** 2)
        return MEAN + self.aim + share * (x - MEAN)


def loss_of(D: nn.Module, loss: DenoisingLoss = LOSS) -> float:
    generator = torch.Generator().manual_seed(0)
    x0 = MEAN + STD * torch.randn(N, 3, generator=generator)
    return loss(D, x0, {}, generator).item()


@given(sigma=st.floats(2e-3, 80), sigma_data=st.floats(0.1, 2))
@settings(deadline=None, max_examples=30)
def test_a_network_of_zeros_leaves_the_skip(sigma: float, sigma_data: float) -> None:
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    D = Preconditioned(Constant(0.0), sigma_data)
    c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
    torch.testing.assert_close(D(x, torch.full((2,), sigma, dtype=torch.float64)), c_skip * x)


def test_the_network_sees_and_gives_table_1() -> None:
    network, sigma, s = Constant(1.0), torch.tensor([0.01, 3.0], dtype=torch.float64), 0.5
    x, y = torch.ones(2, 3, dtype=torch.float64), torch.tensor([4, 2])
    D = Preconditioned(network, s)(x, sigma, y=y)
    c_out = sigma * s / (sigma**2 + s**2) ** 0.5
    torch.testing.assert_close(D, (s**2 / (sigma**2 + s**2) + c_out)[:, None].expand(2, 3))
    assert network.seen is not None
    scaled, c_noise, cond = network.seen
    torch.testing.assert_close(scaled, (1 / (sigma**2 + s**2) ** 0.5)[:, None].expand(2, 3))
    torch.testing.assert_close(c_noise, sigma.log() / 4)
    assert torch.equal(cond["y"], y)


def test_the_exact_denoiser_of_data_of_size_sigma_data_has_loss_one() -> None:
    """lambda cancels the posterior variance sigma^2 s^2 / (sigma^2 + s^2) at every noise level."""
    assert loss_of(Shrinking()) == pytest.approx(1, abs=5 * (2 / (3 * N)) ** 0.5)


@pytest.mark.parametrize(("shrink", "aim"), [(0.95, 0.0), (1.05, 0.0), (1.0, 0.05), (1.0, -0.05)])
def test_any_other_denoiser_loses_more(shrink: float, aim: float) -> None:
    assert loss_of(Shrinking(shrink, aim)) > loss_of(Shrinking()) + 1e-3


def test_noise_levels_are_log_normal() -> None:
    seen: list[Tensor] = []

    class Watching(Shrinking):
        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            seen.append(sigma.log())
            return super().forward(x, sigma)

    loss_of(Watching(), DenoisingLoss(P_mean=-0.5, P_std=0.8))
    (levels,) = seen
    assert levels.mean().item() == pytest.approx(-0.5, abs=5 * 0.8 / N**0.5)
    assert levels.std().item() == pytest.approx(0.8, rel=0.01)


def test_every_draw_comes_from_the_generator() -> None:
    before = torch.get_rng_state()
    assert loss_of(Shrinking()) == loss_of(Shrinking())
    assert torch.equal(torch.get_rng_state(), before)
