"""A critic's head stands on its own network's features, tells two distributions apart, and leads to the real one."""

import copy

import pytest
import torch
from torch import Tensor, nn

import solvers
from distill.adversarial import Critic, critic_loss, generator_loss, judged
from tests.distill.toys import EDM, small

T = torch.full((1,), 80.0)


class Maps(nn.Module):
    """A small convolutional network over (1, 4, 4), whose features are maps."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.SiLU())
        self.pair = nn.Identity()
        self.leave = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.enter(x)
        self.pair((h, h))
        return self.leave(h)


def critic(kind: str) -> Critic:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "maps":
            return Critic(Maps(), "enter", torch.zeros(1, 1, 4, 4), T, {})
    return Critic(small(), "network.inner.3", torch.zeros(1, 2), T, {})


def draws(kind: str, mean: float, seed: int, count: int = 256) -> Tensor:
    """Of N(mean, 1)."""
    shape = (1, 4, 4) if kind == "maps" else (2,)
    return mean + torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def logits(network: Critic, x: Tensor) -> Tensor:
    times = torch.full((len(x),), 0.5, dtype=torch.float64).numpy()
    return judged(solvers.Denoiser(network, EDM, "data"), x, times, {})[1]


def taught(kind: str) -> Critic:
    """A critic that was shown N(1, 1) as real and N(0, 1) as fake."""
    network = critic(kind)
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    for step in range(100):
        optimiser.zero_grad()
        fake, real = (logits(network, draws(kind, mean, 2 * step + int(mean))) for mean in (0.0, 1.0))
        critic_loss(fake, real).backward()
        optimiser.step()
    return network


@pytest.mark.parametrize("kind", ["vectors", "maps"])
def test_it_is_the_network_itself_that_predicts(kind: str) -> None:
    network, x = critic(kind), draws(kind, 0.0, 0)
    t = torch.full((len(x),), 0.5)
    D, judgement = judged(solvers.Denoiser(network, EDM, "data"), x, t.double().numpy(), {})
    assert torch.equal(D, network.network(x, t))
    assert torch.equal(judgement, torch.zeros(len(x)))  # undecided


@pytest.mark.parametrize("kind", ["vectors", "maps"])
def test_it_tells_two_distributions_apart_and_its_gradient_leads_to_the_real_one(kind: str) -> None:
    network = taught(kind)
    fake, real = (logits(network, draws(kind, mean, 10_000 + int(mean), 2000)).detach() for mean in (0.0, 1.0))
    better = 0.75 if kind == "vectors" else 0.97  # of 2 and 16 numbers; the best possible: 0.84 and 0.998
    assert (real[:, None] > fake).float().mean() > better
    assert (critic_loss(fake, real) < critic_loss(torch.zeros(9), torch.zeros(9)) - 0.2).all()
    x = draws(kind, 0.0, 5).requires_grad_()
    generator_loss(logits(network, x)).backward()
    assert x.grad is not None
    assert x.grad.mean() < 0  # descent raises x


def test_a_copy_and_a_loaded_critic_judge_by_their_own_features() -> None:
    network = taught("vectors")
    x = draws("vectors", 0.5, 3)
    before = logits(network, x)
    copied = copy.deepcopy(network)
    loaded = critic("vectors")
    assert not torch.equal(logits(loaded, x), before)
    loaded.load_state_dict(network.state_dict())
    assert torch.equal(logits(loaded, x), before)
    with torch.no_grad():
        network.network.network.enter.weight.zero_()
    assert torch.equal(logits(copied, x), before)
    assert not torch.equal(logits(network, x), before)


def test_guided_calls_are_judged_by_what_they_were_told() -> None:
    class Told(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
            return self.inner(torch.cat([x, y[:, None].to(x.dtype)], 1))[:, :2]

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Critic(Told(), "inner", torch.zeros(1, 2), T, {"y": torch.zeros(1)})
        nn.init.normal_(network.head[-1].weight)
    x, y = draws("vectors", 0.0, 0, 8), {"y": torch.ones(8)}
    times = torch.full((8,), 0.5, dtype=torch.float64).numpy()
    guided = solvers.Denoiser(network, EDM, "data", solvers.Guidance(2.0, {"y": 0}))
    plain = solvers.Denoiser(network, EDM, "data")
    assert torch.equal(judged(guided, x, times, y)[1], judged(plain, x, times, y)[1])
    assert not torch.equal(judged(guided, x, times, y)[0], judged(plain, x, times, y)[0])


def test_it_leaves_the_global_generator_alone() -> None:
    network = small()
    before = torch.get_rng_state()
    Critic(network, "network.inner.3", torch.zeros(1, 2), T, {})
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("at", ["", "network.outer"])
def test_a_module_that_is_not_there_is_named(at: str) -> None:
    with pytest.raises(ValueError, match=f"no module '{at}' whose features"):
        Critic(small(), at, torch.zeros(1, 2), T, {})


def test_a_module_without_features_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the module 'pair' has no features \(B, C\) or \(B, C, H, W\)"):
        Critic(Maps(), "pair", torch.zeros(1, 1, 4, 4), T, {})
