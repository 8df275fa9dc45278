"""A checkpoint from a pickle of EDM or EDM2, of which nothing is run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.checkpoints.base import Checkpoint
from bench.checkpoints.edm import precondition as p
from bench.checkpoints.edm.arguments import Arguments, UNetArguments, checked
from bench.checkpoints.edm.dhariwal import DhariwalArguments, DhariwalUNet
from bench.checkpoints.edm.edm2 import EDM2Arguments, EDM2UNet, folded
from bench.checkpoints.edm.latents import CHANNELS, decoding
from bench.checkpoints.edm.layers import exact
from bench.checkpoints.edm.song import SongArguments, SongUNet
from bench.checkpoints.pipelines.options import check_options
from bench.checkpoints.unpickle import Saved, read_network
from bench.errors import UsageError
from bench.metrics.weights import digest_of
from solvers import EDM, Option

OPTIONS: dict[str, type] = {"resolution": int, "classes": int, "vae": str}
IDLE = ("use_fp16", "dropout", "augment_dim", "logvar_channels")  # arguments for training and precision alone
UNREAD = (  # tensors that arguments say again, or that only training reads
    ".resample_filter", ".map_augment.weight", "logvar_fourier.freqs", "logvar_fourier.phases", "logvar_linear.weight",
)  # fmt: skip


@dataclass(frozen=True)
class UNet:
    """A class of U-Nets: its arguments, and how it is made of them and a number of output channels."""

    arguments: type[UNetArguments]
    make: Callable[..., nn.Module]


@dataclass(frozen=True)
class Preconditioning:
    """A class of preconditioned networks: its arguments, how it is made, and which U-Net it has if none is named."""

    arguments: type[Arguments]
    make: Callable[..., p.Preconditioned]
    unet: str
    variance: bool = False  # whether the U-Net has as many channels again for one


UNETS = {
    "SongUNet": UNet(SongArguments, SongUNet),
    "DhariwalUNet": UNet(DhariwalArguments, DhariwalUNet),
    "UNet": UNet(EDM2Arguments, EDM2UNet),
}
KNOWN = {
    "VPPrecond": Preconditioning(p.VPArguments, p.VPPrecond, "SongUNet"),
    "VEPrecond": Preconditioning(p.VEArguments, p.VEPrecond, "SongUNet"),
    "iDDPMPrecond": Preconditioning(p.IDDPMArguments, p.IDDPMPrecond, "DhariwalUNet", variance=True),
    "EDMPrecond": Preconditioning(p.EDMArguments, p.EDMPrecond, "DhariwalUNet"),
    "Precond": Preconditioning(p.EDMArguments, p.EDMPrecond, "UNet"),  # EDM2's
}


def load(path: Path, options: Mapping[str, Option], name: str) -> Checkpoint:
    """The network of a pickle, whose time is sigma; raises UsageError, and UnknownNameError for an unknown option.

    `resolution` and `classes` are what is expected of it; `vae`, a folder, is the autoencoder of a latent EDM2.
    """
    check_options(name, options, OPTIONS)
    network, a = build(read_network(path), path)
    expect(path, options, a.img_resolution, a.label_dim)
    side, channels = a.img_resolution, a.img_channels
    if channels != CHANNELS and "vae" in options:
        raise UsageError(f"{path} makes images, not latents: it takes no vae")
    decode, digest = decoding(path, options.get("vae")) if channels == CHANNELS else (None, digest_of(path))
    shape = (channels, side, side)
    return Checkpoint(
        name=name,
        digest=digest,
        network=network,
        schedule=EDM(*network.levels),
        predicts="data",
        shape=shape,
        classes=(1 / max(a.label_dim, 1),) * a.label_dim,
        card={"network": type(network.model).__name__, "parameters": sum(w.numel() for w in network.parameters())},
        apart={"decode": decode.work(shape)} if decode else {},
        decode=decode,
        image_shape=(3, side * decode.factor, side * decode.factor) if decode else shape,
        knows_no_class=a.label_dropout > 0,
    )


def expect(path: Path, options: Mapping[str, Option], resolution: int, classes: int) -> None:
    """Raises UsageError where the network is not what `resolution` and `classes` say."""
    for what, found in (("resolution", resolution), ("classes", classes)):
        if options.get(what, found) != found:
            raise UsageError(f"{path} has {what} {found}, not {options[what]}")


def build(saved: Saved, path: Path) -> tuple[p.Preconditioned, UNetArguments]:
    """The preconditioned network of what a pickle holds, and its U-Net's arguments; raises UsageError."""
    if saved.class_name not in KNOWN:
        raise UsageError(f"{path} holds a {saved.class_name}, not one of {', '.join(KNOWN)}")
    kind = KNOWN[saved.class_name]
    given = {k: v for k, v in saved.arguments.items() if k not in IDLE}
    unet = given.pop("model_type", kind.unet)
    if unet not in UNETS or (unet == "UNet") != (kind.unet == "UNet"):
        raise UsageError(f"{path}: a {saved.class_name} of a {unet!r:.40} is not known")
    outer = {k: v for k, v in given.items() if k in kind.arguments.model_fields}
    inner = {k: v for k, v in given.items() if k not in outer or k in Arguments.model_fields}
    a = checked(UNETS[unet].arguments, inner, unet, path)
    b = checked(kind.arguments, outer, saved.class_name, path)
    try:
        with torch.device("meta"):  # no memory is taken before the tensors are known to be these
            model = UNETS[unet].make(a, a.img_channels * (2 if kind.variance else 1))
            network = kind.make(model, b)
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error
    read = {k: v for k, v in saved.tensors.items() if not k.endswith(UNREAD)}
    if unet == "UNet":
        read = {k.replace("unet.", "model.", 1): w for k, w in folded(read).items()}
    filled(network, read, path)
    return network, a


def filled(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Give a network made on the meta device its tensors, in float32, and freeze it; raises UsageError.

    Names and shapes must be the network's own, all of them.
    """
    wanted = network.state_dict()
    for name in sorted(wanted.keys() | tensors.keys()):
        if name not in tensors:
            raise UsageError(f"{path} lacks a tensor of its network: {name}")
        if name not in wanted:
            raise UsageError(f"{path} has a tensor that its network has not: {name}")
        if (found := tensors[name].shape) != wanted[name].shape:
            raise UsageError(f"{path}: {name} is {tuple(found)}, and its network's is {tuple(wanted[name].shape)}")
        if not tensors[name].isfinite().all():
            raise UsageError(f"{path}: {name} is not finite")
    single = {name: tensor.float() for name, tensor in tensors.items()}
    bits = {name: exact(tensor) for name, tensor in single.items() if wanted[name].dtype == torch.int32}
    network.load_state_dict(single | bits, assign=True)
    network.eval().requires_grad_(False)
