"""Networks of diffusers on latents, told of classes or nothing: DiT, and latent diffusion without text."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bench.checkpoints.base import Checkpoint
from bench.checkpoints.pipelines import unet
from bench.checkpoints.pipelines.files import SCHEDULER, load_model, open_folder
from bench.checkpoints.pipelines.options import COMMON, check_options, word
from bench.checkpoints.pipelines.schedule import label_count, labels, read_schedule
from bench.checkpoints.pipelines.vae import Decoder
from bench.errors import UsageError
from solvers import Option

DIT = ("DiTTransformer2DModel", "Transformer2DModel")  # the latter before the class had a name of its own
AUTOENCODERS = ("VQModel", "AutoencoderKL")


class DiscreteDiT(nn.Module):
    """A DiT told of training labels, of which there are N: (x, t, y) -> its prediction, in x's dtype.

    The variance that it learned too, in further channels, is left out.  Peebles & Xie 2023, arXiv 2212.09748.
    """

    def __init__(self, model: Any, N: int) -> None:
        super().__init__()
        self.model = model
        self.N = N

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        out: Tensor = self.model(x.to(self.model.dtype), labels(t, self.N), y).sample
        return out[:, : x.shape[1]].to(x.dtype)


def load_dit(path: Path, options: Mapping[str, Option], name: str) -> Checkpoint:
    """A DiTPipeline, at its own resolution; raises UsageError, UnknownNameError."""
    check_options(name, options, COMMON | {"classes": int})
    folder = open_folder(path, word(options, "variant"))
    part, autoencoder = folder.part("transformer", *DIT), folder.part("vae", "AutoencoderKL")
    scheduler = folder.scheduler()
    schedule, predicts = read_schedule(scheduler, path / SCHEDULER, word(options, "prediction"))
    N = label_count(schedule, path)
    model, decode = load_model(part), Decoder(load_model(autoencoder))
    K, side, channels = (model.config[k] for k in ("num_embeds_ada_norm", "sample_size", "in_channels"))
    pixels, shape = side * decode.factor, (channels, side, side)
    for option, own in (("resolution", pixels), ("classes", K)):
        if options.get(option, own) != own:
            raise UsageError(f"{path}: {option}={options[option]}, and it has {own}")
    network = DiscreteDiT(model, N)
    return Checkpoint(
        name=name,
        digest=folder.digest(["transformer", "vae", "scheduler"], predicts=predicts),
        network=network,
        schedule=schedule,
        predicts=predicts,
        shape=shape,
        classes=(1 / K,) * K,
        card=unet.about(folder, network, scheduler),
        apart={"decode": decode.work(shape)},
        decode=decode,
        image_shape=(3, pixels, pixels),
    )


def load_ldm(path: Path, options: Mapping[str, Option], name: str) -> Checkpoint:
    """An LDMPipeline; raises UsageError, UnknownNameError."""
    check_options(name, options)
    folder = open_folder(path, word(options, "variant"))
    part, autoencoder = folder.part("unet", unet.UNET), folder.part("vqvae", *AUTOENCODERS)
    scheduler = folder.scheduler()
    schedule, predicts = read_schedule(scheduler, path / SCHEDULER, word(options, "prediction"))
    own, levels = unet.side(part), len(part.config.get("block_out_channels", ()))
    network, decode = unet.adapt(load_model(part), schedule, scheduler, path), Decoder(load_model(autoencoder))
    h, w = latent_side(own, decode.factor, 2 ** (levels - 1), options, path)
    shape = (int(part.config.get("in_channels", 3)), h, w)
    return Checkpoint(
        name=name,
        digest=folder.digest(["unet", "vqvae", "scheduler"], predicts=predicts, resolution=f"{h}x{w}"),
        network=network,
        schedule=schedule,
        predicts=predicts,
        shape=shape,
        card=unet.about(folder, network, scheduler),
        apart={"decode": decode.work(shape)},
        decode=decode,
        image_shape=(3, h * decode.factor, w * decode.factor),
    )


def latent_side(
    own: tuple[int, int], factor: int, multiple: int, options: Mapping[str, Option], path: Path
) -> tuple[int, int]:
    """Rows and columns of the latents: the network's own, or those of `resolution`, a multiple of what it divides by.

    `factor` is pixels a latent.  Raises UsageError.
    """
    if "resolution" not in options:
        return own
    pixels, step = int(options["resolution"]), factor * multiple
    if pixels < step or pixels % step:
        raise UsageError(f"{path}: resolution={pixels} is no multiple of {step} pixels")
    return pixels // factor, pixels // factor
