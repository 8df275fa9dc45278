"""The training loop: it learns, is reproducible, touches nothing global, and stops at NaN."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from distill.denoising import DenoisingLoss, Preconditioned
from distill.trainer import Recipe, Trained, initialise, train

MEAN, STD = torch.tensor([0.8, -0.5]), torch.tensor([0.9, 0.2])
SIGMA_DATA = 0.75


class Tiny(nn.Module):
    """A perceptron of one hidden layer over (x, c_noise)."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 48), nn.SiLU(), nn.Dropout(dropout), nn.Linear(48, 2))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.layers(torch.cat([x, c_noise[:, None]], 1))


class Exact(nn.Module):
    """E[x0 | x] of N(MEAN, diag STD^2)."""

    sigma_data = SIGMA_DATA

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return MEAN + STD**2 / (STD**2 + sigma[:, None] ** 2) * (x - MEAN)


def loss(network: nn.Module, generator: torch.Generator, batch: int = 256) -> Tensor:
    x0 = MEAN + STD * torch.randn(batch, 2, generator=generator)
    return DenoisingLoss()(network, x0, {}, generator)


def risk(network: nn.Module) -> float:
    """The loss on many fresh samples, the same for every network."""
    with torch.no_grad():
        return loss(network, torch.Generator().manual_seed(99), 100_000).item()


def trained(steps: int = 30, seed: int = 0, dropout: float = 0.0) -> Trained:
    network = Preconditioned(Tiny(dropout), SIGMA_DATA)
    initialise(network, 0)
    return train(network, loss, Recipe(steps=steps, batch=256, lr=1e-2, warmup=20, seed=seed))


def weights(result: Trained) -> Tensor:
    return torch.cat([p.flatten() for p in result.network.parameters()])


def test_a_tiny_network_learns_a_gaussians_denoiser() -> None:
    untrained = Preconditioned(Tiny(), SIGMA_DATA)
    initialise(untrained, 0)
    result = trained(steps=1000)
    optimum, before, after = risk(Exact()), risk(untrained), risk(result.network)
    assert before > 1.3 * optimum
    assert optimum < after < 1.05 * optimum
    assert result.final_loss == pytest.approx(after, rel=0.1)
    assert result.seconds > 0


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_same_seed_gives_the_same_bits_whatever_the_global_generator(dropout: float) -> None:
    torch.manual_seed(1)
    first = trained(dropout=dropout)
    torch.manual_seed(2)
    second = trained(dropout=dropout)
    assert torch.equal(weights(first), weights(second))
    assert first.final_loss == second.final_loss
    assert not torch.isclose(weights(trained(seed=1, dropout=dropout)), weights(first)).all()  # of batches alone


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_training_leaves_the_global_generator_alone(dropout: float) -> None:
    network = Preconditioned(Tiny(dropout), SIGMA_DATA)
    before = torch.get_rng_state()
    train(network, loss, Recipe(steps=3, batch=16, lr=1e-3))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_training_at_its_step(bad: float) -> None:
    steps: list[int] = []

    def spoilt(network: nn.Module, generator: torch.Generator) -> Tensor:
        return loss(network, generator) * (bad if len(steps) == 3 else 1.0)

    network = Preconditioned(Tiny(0.3), SIGMA_DATA)
    before = torch.get_rng_state()
    with pytest.raises(FloatingPointError, match=r"at step 3$"):
        train(network, spoilt, Recipe(10, 16, 1e-3), lambda step, value: steps.append(step))
    assert steps == [0, 1, 2]
    assert all(p.isfinite().all() for p in network.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_the_result_is_an_average_ready_to_be_used() -> None:
    network = Preconditioned(Tiny(0.3), SIGMA_DATA)
    initialise(network, 0)
    history = [torch.cat([p.detach().flatten() for p in network.parameters()])]

    def keep(step: int, value: float) -> None:
        history.append(torch.cat([p.detach().flatten() for p in network.parameters()]))

    result = train(network, loss, Recipe(20, 64, 1e-2, ema=0.5, warmup=5), keep)
    average = history[0]
    for step, now in enumerate(history[1:]):
        average = torch.lerp(average, now, 1 - min(0.5, (1 + step) / (10 + step)))
    torch.testing.assert_close(weights(result), average)
    assert not result.network.training


def test_the_result_carries_no_graph() -> None:
    parameters = list(trained(steps=2).network.parameters())
    assert all(p.is_leaf for p in parameters)
    assert not any(p.requires_grad for p in parameters)


@given(steps=st.integers(2, 500), warmup=st.integers(1, 300), lr=st.floats(1e-5, 1))
@settings(deadline=None, max_examples=50)
def test_the_rate_rises_then_falls_to_zero(steps: int, warmup: int, lr: float) -> None:
    recipe = Recipe(steps=steps, batch=1, lr=lr, warmup=warmup)
    rates = [recipe.lr_at(step) for step in range(max(steps, warmup + 1))]
    assert rates[:warmup] == pytest.approx([lr * (i + 1) / warmup for i in range(warmup)])
    assert rates[warmup] == pytest.approx(lr)
    assert all(a >= b for a, b in pairwise(rates[warmup:]))
    assert recipe.lr_at(max(steps, warmup + 1)) == pytest.approx(0, abs=1e-12)


def test_initial_weights_depend_on_the_seed_alone() -> None:
    found = []
    for state in (1, 2):
        torch.manual_seed(state)
        layer = nn.Linear(4, 4)
        nn.init.zeros_(layer.weight)
        initialise(layer, 0)
        found.append(layer.bias.detach())
    assert torch.equal(*found)


def test_initial_weights_have_the_size_of_their_inputs() -> None:
    linear, table = nn.Linear(400, 300), nn.Embedding(300, 200)
    initialise(nn.ModuleList([linear, table]), 0)
    assert linear.weight.std().item() == pytest.approx(1 / 20, rel=0.02)
    assert table.weight.std().item() == pytest.approx(1, rel=0.02)
    assert not linear.bias.any()
