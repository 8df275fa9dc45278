"""A discriminator that is a denoiser at once: a head on the features of one of its modules, and the losses of a GAN.

    critic = Denoiser(Critic(network, "inner.3", x, t, cond), schedule, predicts)
    D, logits = judged(critic, x_t, t, cond)                one call: its data prediction, and real or not

Yin et al. 2024, "Improved Distribution Matching Distillation for Fast Image Synthesis", arXiv 2405.14867, Section 4.3;
the losses are the non-saturating ones of Goodfellow et al. 2014, arXiv 1406.2661, Section 3.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from solvers.model import Cond, Denoiser
from solvers.schedule import Array


def pooled(features: Tensor) -> Tensor:
    """(B, C): the features themselves, or the mean over the positions of (B, C, H, W)."""
    return features.flatten(2).mean(2) if features.ndim > 2 else features


class Critic(nn.Module):
    """`network` with a head on the output of its module called `at`, as `named_modules` calls it.

    One pass over x (1, *shape) at t (1,) with its conditions finds the features' size.  The head answers 0 at first.
    Raises ValueError for a module that is not there, or whose output is not (B, C) or (B, C, H, W).
    """

    def __init__(self, network: nn.Module, at: str, x: Tensor, t: Tensor, cond: Cond) -> None:
        super().__init__()
        if not at or at not in dict(network.named_modules()):
            raise ValueError(f"no module {at!r} whose features a discriminator could look at")
        self.network = network
        self.at = at
        with torch.random.fork_rng(devices=[]), torch.no_grad():  # the head's weights are always the same
            torch.manual_seed(0)
            with self.watched() as seen:
                network(x, t, **cond)
            if not seen or not isinstance(seen[0], Tensor) or seen[0].ndim not in (2, 4):
                raise ValueError(f"the module {at!r} has no features (B, C) or (B, C, H, W) to look at")
            size = pooled(seen[0]).shape[1]
            layers = nn.LayerNorm(size), nn.Linear(size, size), nn.SiLU(), nn.Linear(size, 1)
            nn.init.zeros_(layers[-1].weight)
            nn.init.zeros_(layers[-1].bias)
        self.head = nn.Sequential(*layers).to(x.device)

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        """The network's own prediction, (B, *shape)."""
        out: Tensor = self.network(x, t, **cond)
        return out

    @contextmanager
    def watched(self) -> Iterator[list[Tensor]]:
        """The features of each forward while it lasts; nothing of them is kept, so that a critic can be copied."""
        seen: list[Tensor] = []
        hook = self.network.get_submodule(self.at).register_forward_hook(lambda *call: seen.append(call[-1]))
        try:
            yield seen
        finally:
            hook.remove()

    def logits(self, features: Tensor) -> Tensor:
        """How real what had these features looks, (B,): the logarithm of the odds."""
        out: Tensor = self.head(pooled(features).to(next(self.head.parameters()).dtype))
        return out[:, 0].float()


def judged(critic: Denoiser, x: Tensor, t: Array, cond: Cond) -> tuple[Tensor, Tensor]:
    """The data prediction (B, *shape) for x at times t (B,), and the logits (B,): one call of a critic's denoiser."""
    network = critic.network
    assert isinstance(network, Critic)
    with network.watched() as seen:
        D = critic.at_each(x, t, "data", cond)
    return D, network.logits(seen[0])


def critic_loss(fake: Tensor, real: Tensor) -> Tensor:
    """What telling fakes from the real minimises, of the logits (B,) of each: ()."""
    return F.softplus(fake).mean() + F.softplus(-real).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """What deceiving the critic minimises, of the fakes' logits (B,): ()."""
    return F.softplus(-fake).mean()
