"""EDM2's latents: those of Stable Diffusion's autoencoder, shifted and scaled channel by channel."""

from pathlib import Path
from typing import Any

from torch import Tensor

from bench.checkpoints.pipelines.files import Folder, load_model
from bench.checkpoints.pipelines.vae import Decoder
from bench.errors import UsageError
from bench.files import sha256
from bench.metrics.weights import digest_of
from solvers import Option

CHANNELS = 4
MEAN = (5.81, 3.25, 0.12, -2.15)  # of the autoencoder's own latents over ImageNet
STD = (4.17, 4.62, 3.71, 3.28)
SIGMA_DATA = 0.5  # what they were scaled to


class EDM2Decoder(Decoder):
    """latents (B, 4, h, w) -> images (B, 3, 8 h, 8 w), float32.

    EDM2's autoencoder saw images in [0, 1], and its bytes are those times 255 with the rest cut off: one half less than
    images in [-1, 1] are rounded by, which is taken off here, so that the bytes are EDM2's.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__(vae)
        self.shift, self.std = MEAN, tuple(s / SIGMA_DATA for s in STD)

    def __call__(self, latents: Tensor) -> Tensor:
        return 2 * super().__call__(latents) - 256 / 255


def decoding(path: Path, vae: Option | None) -> tuple[EDM2Decoder, str]:
    """The decoder for the latents of the network at `path`, and the digest of both; raises UsageError."""
    if vae is None:
        raise UsageError(f"{path} makes latents: name the folder of stabilityai/sd-vae-ft-mse, vae=FOLDER")
    folder = Folder(Path(str(vae)))
    model: Any = load_model(folder.part("vae", "AutoencoderKL"))
    if model.config.latent_channels != CHANNELS:
        raise UsageError(f"vae: {vae} has {model.config.latent_channels} channels of latents, not {CHANNELS}")
    return EDM2Decoder(model), sha256(f"{digest_of(path)} {folder.digest(['vae'])}".encode())
