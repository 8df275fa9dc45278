"""Latents to images: the decoder of a variational autoencoder, in float32 and in small parts."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

PIXELS = 2**21  # decoded at once: a few gigabytes of activations
Moment = tuple[float, ...] | float


class Decoder:
    """latents (B, c, h, w) on any device -> images (B, 3, H, W) in [-1, 1], float32, there.

    The latents were x = (z - shift)/std as the network saw them; float32 because Stable Diffusion XL's autoencoder
    overflows in half precision.
    """

    def __init__(self, vae: Any) -> None:
        config = vae.config
        self.vae = vae.float().eval().requires_grad_(False)
        scale: float = config.scaling_factor
        mean, std = config.get("latents_mean"), config.get("latents_std")
        own = mean is not None and std is not None  # of each channel, where the autoencoder's config has both
        self.std: Moment = tuple(s / scale for s in std) if own else 1 / scale
        self.shift: Moment = tuple(mean) if own else config.get("shift_factor") or 0.0
        self.factor: int = 2 ** (len(config.block_out_channels) - 1)

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> Tensor:
        self.vae.to(latents.device)
        z = latents.float() * _column(self.std, latents) + _column(self.shift, latents)
        part = max(1, PIXELS // (z.shape[-1] * z.shape[-2] * self.factor**2))
        return torch.cat([self.vae.decode(some, return_dict=False)[0] for some in z.split(part)])

    def work(self, shape: tuple[int, ...]) -> Callable[[torch.device, int], Callable[[], object]]:
        """Decoding as many latents of this shape as asked, to be timed."""

        def ready(device: torch.device, batch: int) -> Callable[[], object]:
            latents = torch.zeros(batch, *shape, device=device)
            return lambda: self(latents)

        return ready


def _column(moment: Moment, x: Tensor) -> Tensor:
    return torch.tensor(moment, device=x.device).reshape(-1, 1, 1)
