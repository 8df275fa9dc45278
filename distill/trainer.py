"""The one training loop: AdamW, warm-up and cosine decay, an exponential moving average of the weights."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to train; `ema` is the decay of the averaged weights per step."""

    steps: int
    batch: int
    lr: float
    ema: float = 0.999
    weight_decay: float = 0.0
    warmup: int = 200
    seed: int = 0

    def lr_at(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to zero."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Trained:
    """The averaged network, the mean loss of the last tenth of the steps, and the seconds it took."""

    network: nn.Module
    final_loss: float
    seconds: float


def initialise(network: nn.Module, seed: int) -> None:
    """Draw all weights afresh from `seed`: matrices N(0, 1/fan_in), embeddings N(0, 1), biases 0; zeros stay zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                if module.weight.any():
                    module.weight.normal_(0, module.weight[0].numel() ** -0.5, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(0, 1, generator=generator)


def train(
    network: nn.Module,
    loss: Callable[[nn.Module, torch.Generator], Tensor],
    recipe: Recipe,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> Trained:
    """Train `network` in place and return its moving average; `loss` draws its own batch from the generator.

    Raises FloatingPointError, naming the step, when the loss stops being finite.
    """
    with torch.random.fork_rng(devices=[]):  # dropout draws from the global generator; it gets it back as it was
        torch.manual_seed(recipe.seed)
        return _train(network, loss, recipe, on_step)


def _train(
    network: nn.Module,
    loss: Callable[[nn.Module, torch.Generator], Tensor],
    recipe: Recipe,
    on_step: Callable[[int, float], None],
) -> Trained:
    generator = torch.Generator().manual_seed(recipe.seed + 1)
    optimiser = torch.optim.AdamW(network.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
    averaged = copy.deepcopy(network).requires_grad_(False)
    start, tail = time.perf_counter(), []
    for step in range(recipe.steps):
        for group in optimiser.param_groups:
            group["lr"] = recipe.lr_at(step)
        value = loss(network, generator)
        if not torch.isfinite(value):
            raise FloatingPointError(f"the loss became {value.item()} at step {step}")
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        decay = min(recipe.ema, (1 + step) / (10 + step))  # short memory while the weights still move fast
        with torch.no_grad():
            torch._foreach_lerp_(list(averaged.parameters()), list(network.parameters()), 1 - decay)
        if step >= recipe.steps * 9 // 10:
            tail.append(value.item())
        on_step(step, value.item())
    return Trained(averaged.eval(), sum(tail) / len(tail), time.perf_counter() - start)
