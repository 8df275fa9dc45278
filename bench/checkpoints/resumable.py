"""Long trainings on any device: one file keeps where they are, and they go on there to the same weights."""

import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from bench.errors import UsageError
from bench.files import write_atomically
from distill.trainer import Loop, Recipe

SAVED_EVERY = 60.0  # seconds
POINTS = 100  # of the curve
StepLoss = Callable[[nn.Module, torch.Generator], Tensor]
OnStep = Callable[[int, float], None]


@dataclass
class Training:
    """A network in training with its curve: (step, mean loss since the point before); `seconds` over all commands."""

    network: nn.Module
    recipe: Recipe
    accelerator: Accelerator
    state: Path
    seconds: float = 0.0
    curve: list[tuple[int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Raises UsageError for a state of something else."""
        self.loop = Loop({"network": self.network.to(self.accelerator.device)}, self.recipe, self.accelerator)
        self.tail: list[float] = []
        if self.state.exists():
            self._resume()

    def run(self, loss: StepLoss, on_step: OnStep) -> nn.Module:
        """Train to the end, and return the averaged network; raises FloatingPointError, naming the step.

        A step's draws are a function of (seed, step) on a kind of device: interrupted or not, they are the same.
        """
        device, began = self.accelerator.device, time.perf_counter()
        generator, saved, before = torch.Generator(device), began, self.seconds
        every = max(1, self.recipe.steps // POINTS)
        while self.loop.step < self.recipe.steps:
            generator.manual_seed(self.recipe.seed * 2**32 + self.loop.step)
            value = self.loop.turn("network", lambda: loss(self.network, generator))
            on_step(self.loop.step, value)
            self.loop.step += 1
            self.tail.append(value)
            if self.loop.step % every == 0:
                self.curve.append((self.loop.step, sum(self.tail) / len(self.tail)))
                self.tail.clear()
            now = time.perf_counter()
            self.seconds = before + now - began
            if now - saved > SAVED_EVERY:
                self._save()
                saved = now
        self._save()
        return self.loop.averaged.eval()

    def _save(self) -> None:
        kept = {"recipe": vars(self.recipe), "loop": self.loop.state_dict(), "tail": self.tail}
        kept |= {"seconds": self.seconds, "curve": self.curve}
        write_atomically(self.state, lambda file: torch.save(kept, file))

    def _resume(self) -> None:
        kept = self._kept()
        if kept["recipe"] != vars(self.recipe):
            raise UsageError(f"{self.state} is of a training by {kept['recipe']}: go on with that, or delete it")
        self.loop.load_state_dict(kept["loop"])
        self.seconds, self.tail, self.curve = kept["seconds"], kept["tail"], kept["curve"]

    def _kept(self) -> dict[str, Any]:
        try:
            # Optimisers count steps on the CPU; on a GPU each would be waited for, parameter by parameter.
            kept: dict[str, Any] = torch.load(self.state, weights_only=True, map_location="cpu")
            if kept.keys() >= {"recipe", "loop", "tail", "seconds", "curve"}:
                return kept
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
            pass
        raise UsageError(f"{self.state} is no state of this training: delete it to begin anew") from None
