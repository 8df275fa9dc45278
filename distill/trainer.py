"""The one training loop: networks that take turns, and an exponential moving average of the first.

Devices, mixed precision and several processes are accelerate's.  Gradients are averaged over processes here: turns
that pass through another player's network are what its wrapper of networks does not allow.
"""

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs
from torch import Tensor, nn

NO_CACHE = AutocastKwargs(cache_enabled=False)  # older torch keeps what it cast under no_grad, without its gradient
OPTIMISERS = {"adamw": torch.optim.AdamW, "radam": torch.optim.RAdam}


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to train; `ema` is the averaged weights' decay a step, `clip` the longest gradient."""

    steps: int
    batch: int
    lr: float
    ema: float = 0.999
    weight_decay: float = 0.0
    warmup: int = 200
    seed: int = 0
    optimiser: Literal["adamw", "radam"] = "adamw"
    clip: float | None = None

    def lr_at(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to zero."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * 0.5 * (1 + math.cos(math.pi * progress))


class Player:
    """A network in training: its parameters that want a gradient, and their optimiser."""

    def __init__(self, network: nn.Module, recipe: Recipe, rate: float = 1.0) -> None:
        self.network = network
        self.rate = rate
        self.trained = {name for name, p in network.named_parameters() if p.requires_grad}
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        make = OPTIMISERS[recipe.optimiser]
        self.optimiser = make(self.parameters, recipe.lr * rate, weight_decay=recipe.weight_decay)


class Loop:
    """The state of a training: its players, of which the first is averaged, and how many steps are over.

    With `target_decay` there is a second average, `target`, that a loss may look at; else it is the first player
    itself.  `begins` is the step of the whole training that the loop's first is.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        recipe: Recipe,
        accelerator: Accelerator,
        rates: Mapping[str, float] | None = None,
        target_decay: float = 0.0,
        begins: int = 0,
    ) -> None:
        if accelerator.mixed_precision == "fp16":  # needs the loss scaled, and steps skipped: state of accelerate's own
            raise ValueError("mixed precision fp16 is not supported: choose bf16 or no")
        self.recipe = recipe
        self.accelerator = accelerator
        self.begins = begins
        self.players = {name: Player(net, recipe, (rates or {}).get(name, 1.0)) for name, net in networks.items()}
        self.first = next(iter(networks))
        student = networks[self.first]
        self.averaged = copy.deepcopy(student).requires_grad_(False).eval()
        self.target_decay = target_decay
        self.target = copy.deepcopy(student).requires_grad_(False) if target_decay else student
        self.step = 0

    def turn(self, name: str, loss: Callable[[], Tensor]) -> float:
        """Train one player by one step on the loss; raises FloatingPointError when that is not finite."""
        player = self.players[name]
        for other in self.players.values():
            for p in other.parameters:
                p.requires_grad_(other is player)
        for group in player.optimiser.param_groups:
            group["lr"] = player.rate * self.recipe.lr_at(self.step)
        with self.accelerator.autocast(NO_CACHE):
            value = loss()
        known = float(self.accelerator.reduce(value.detach(), "mean"))  # the same on all: they stop together
        if not math.isfinite(known):
            raise FloatingPointError(f"the loss became {known} at step {self.begins + self.step}")
        player.optimiser.zero_grad()
        self.accelerator.backward(value)
        self._reduce(player)
        player.optimiser.step()
        if name == self.first:
            self._average(player)
        return known

    def _reduce(self, player: Player) -> None:
        """Gradients averaged over processes, and clipped; raises FloatingPointError where they are not finite."""
        if self.accelerator.num_processes > 1:
            for p in player.parameters:
                p.grad = self.accelerator.reduce(torch.zeros_like(p) if p.grad is None else p.grad, "mean")
        norm = nn.utils.clip_grad_norm_(player.parameters, math.inf if self.recipe.clip is None else self.recipe.clip)
        if not torch.isfinite(norm):  # a finite loss may have a gradient that is not, such as a root's at 0
            raise FloatingPointError(f"the gradient became {norm.item()} at step {self.begins + self.step}")

    def _average(self, player: Player) -> None:
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))  # short memory while weights still move fast
        averages = [(self.averaged, decay)] + [(self.target, self.target_decay)] * (self.target_decay > 0)
        for average, kept in averages:
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(player.network.parameters()), 1 - kept)
                for ours, theirs in zip(average.buffers(), player.network.buffers(), strict=True):
                    ours.copy_(theirs)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on."""
        found = {"step": self.step, "averaged": self.averaged.state_dict(), "target": self.target.state_dict()}
        players = {name: (p.network.state_dict(), p.optimiser.state_dict()) for name, p in self.players.items()}
        return found | {"players": players}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.step = state["step"]
        self.averaged.load_state_dict(state["averaged"])
        for name, (network, optimiser) in state["players"].items():
            self.players[name].network.load_state_dict(network)
            self.players[name].optimiser.load_state_dict(optimiser)
        self.target.load_state_dict(state["target"])


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
    generator = torch.Generator().manual_seed(recipe.seed + 1)
    loop = Loop({"network": network}, recipe, Accelerator(cpu=True))
    start, tail = time.perf_counter(), []
    with torch.random.fork_rng(devices=[]):  # dropout draws from the global generator; it gets it back as it was
        torch.manual_seed(recipe.seed)
        for step in range(recipe.steps):
            value = loop.turn("network", lambda: loss(network, generator))
            loop.step += 1
            if step >= recipe.steps * 9 // 10:
                tail.append(value)
            on_step(step, value)
    return Trained(loop.averaged.eval(), sum(tail) / len(tail), time.perf_counter() - start)
