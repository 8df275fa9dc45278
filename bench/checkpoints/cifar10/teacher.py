"""The cifar10_jpeg checkpoint: a DDPM++ of 22 M weights, conditional on class, preconditioned and sampled as EDM."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from bench.checkpoints.base import Checkpoint
from bench.checkpoints.bundle import BUNDLED, Bundle
from bench.checkpoints.cifar10.data import CLASSES, SHAPE, training
from bench.checkpoints.edm.precondition import EDMArguments, EDMPrecond
from bench.checkpoints.edm.song import SongArguments, SongUNet
from solvers.schedule import EDM

SIGMA_DATA = 0.5  # of the training pixels
STATISTICS = BUNDLED / "cifar10_jpeg_features" / "train.npz"  # of the training photographs' features
UNET = {"model_channels": 96, "channel_mult": (1, 2, 2, 2), "num_blocks": 2, "attn_resolutions": (16,)}


def network_of(unet: Mapping[str, Any]) -> EDMPrecond:
    """The network, not trained, of a U-Net with these arguments of DDPM++."""
    a = SongArguments(img_resolution=SHAPE[1], img_channels=SHAPE[0], label_dim=CLASSES, label_dropout=0.1, **unet)
    b = EDMArguments(img_resolution=SHAPE[1], img_channels=SHAPE[0], label_dim=CLASSES, sigma_data=SIGMA_DATA)
    return EDMPrecond(SongUNet(a, SHAPE[0]), b)


def load(bundle: Bundle) -> Checkpoint:
    """The denoiser of a bundle, whose weights are stored in half precision; its card says how large it is."""
    network: nn.Module = network_of(bundle.card["unet"])
    network.load_state_dict({k: v.float() for k, v in bundle.tensors.items()})
    return Checkpoint(
        name="cifar10_jpeg",
        digest=bundle.digest,
        network=network.to(memory_format=torch.channels_last).eval().requires_grad_(False),
        schedule=EDM(),
        predicts="data",
        shape=SHAPE,
        classes=(1 / CLASSES,) * CLASSES,
        metrics=("frechet_cifar10_jpeg", "trajectory"),
        card=bundle.card,
        references=(str(STATISTICS),),
        training=training,
    )
