"""Guidance's scale as an input of a network that had none: added where the time is embedded.

Meng et al. 2023, arXiv 2210.03142, Section 3; the embedding is of Luo et al. 2023, arXiv 2310.04378, Section 4.3.
"""

import math

import torch
from torch import Tensor, nn

WIDTH = 256  # of the embedding
SCALING = 1000.0  # of w, so that its sines are those of labels


def sinusoidal(w: Tensor, width: int) -> Tensor:
    """Sines, then cosines, of numbers w (B,) at frequencies from 1 to 1e-4: (B, width), in w's dtype."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, dtype=w.dtype, device=w.device) * (-math.log(10_000) / (half - 1)))
    angles = w[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], 1)
    return torch.nn.functional.pad(waves, (0, width - 2 * half))


def scale_embedding(w: Tensor) -> Tensor:
    """Of scales w (B,), as latent consistency models are told them: (B, WIDTH)."""
    return sinusoidal(SCALING * w, WIDTH)


class ScaleEmbedded(nn.Module):
    """network(x, t, w): w's embedding, projected, is added to what the module called `at` gives, (B, features).

    The projection is zero at first, so that the network begins as it was.  Raises ValueError where there is no such
    module, or no linear layer in it that says how wide it is.
    """

    def __init__(self, network: nn.Module, at: str) -> None:
        super().__init__()
        found = dict(network.named_modules()).get(at) if at else None
        if found is None:
            raise ValueError(f"the network has no module {at!r} that embeds the time, to which a scale could be added")
        layers = [m for m in found.modules() if isinstance(m, nn.Linear)]
        if not layers:
            raise ValueError(f"the module {at!r} has no linear layer: a scale is added to the output of the last of it")
        self.network = network
        self.at = at
        self.project = nn.Linear(WIDTH, layers[-1].out_features, bias=False)
        nn.init.zeros_(self.project.weight)

    def forward(self, x: Tensor, t: Tensor, w: Tensor | None = None, **cond: Tensor) -> Tensor:
        """x (B, *shape), t and w (B,) -> the network's prediction; without w, that of the network alone."""
        if w is None:
            return self.network(x, t, **cond)
        added = self.project(scale_embedding(w.to(torch.float32)).to(self.project.weight.dtype))
        # A hook of this call alone: a copy of the network has none that point elsewhere.
        with self.network.get_submodule(self.at).register_forward_hook(lambda _, inputs, out: out + added):
            return self.network(x, t, **cond)
