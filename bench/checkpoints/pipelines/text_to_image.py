"""What all text-to-image pipelines have in common: options, components, size, digest, and the checkpoint they make."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from bench.checkpoints.base import Checkpoint
from bench.checkpoints.pipelines import lora, other_unet
from bench.checkpoints.pipelines.files import Folder, Part, load_model, open_folder, quiet
from bench.checkpoints.pipelines.options import COMMON, check_options, word
from bench.checkpoints.pipelines.schedule import read_schedule
from bench.checkpoints.pipelines.text import Encode, PipelineText, load_encoder, load_tokenizer
from bench.checkpoints.pipelines.vae import Decoder
from bench.errors import UsageError
from bench.metrics.weights import digest_of
from solvers import Option

OPTIONS = {**COMMON, "lora": str, "lora_scale": float}


class Told(nn.Module):
    """A network that is told of prompts: (x, t, **conditions) -> its prediction, in x's dtype.

    `model` is diffusers' own, which may be of another precision.  Latents have so many `channels` and, unless told
    otherwise, so many rows and columns as `side` says, each a multiple of `patch`; `most` is the most it can take.
    """

    channels: int
    side: tuple[int, int]
    patch: int = 1
    most: float = math.inf
    scale_as_input: bool = False

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model


@dataclass(frozen=True)
class Kind:
    """A kind of pipeline.

    `network` is the component that denoises, of class `model`, and `encoders` gives the class of each text encoder;
    those that are `optional` may be null.  `adapt` makes the network of the model and the number of training labels;
    `encode` says how prompts are encoded for it and for images of (height, width).  `settings` says what the
    pipeline's class is made with beside its components, by model_index.json.
    """

    network: str
    model: str
    encoders: Mapping[str, str]
    adapt: Callable[[Any, int], Told]
    encode: Callable[[Told, int, int], Encode]
    optional: tuple[str, ...] = ()
    settings: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda index: {}
    options: Mapping[str, type] = field(default_factory=lambda: OPTIONS)


def load(path: Path, options: Mapping[str, Option], name: str, kind: Kind) -> Checkpoint:
    """The checkpoint in a pipeline's folder; raises UsageError, and UnknownNameError for an unknown option."""
    check_options(name, options, kind.options)
    folder = open_folder(path, word(options, "variant"))
    adapter = lora.find(Path(str(options["lora"]))) if "lora" in options else None
    unet = other_unet.find(Path(str(options["unet"])), folder, kind.model) if "unet" in options else None
    decided: dict[str, Any] = {"unet": other_unet.digest(unet)} if unet else {}
    pipeline = _assemble(folder, kind, unet)
    if adapter:
        scale = float(options.get("lora_scale", 1.0))
        lora.fuse(pipeline, adapter, scale)
        decided |= {"lora": digest_of(adapter), "lora_scale": scale}
    scheduler, decode = folder.scheduler(), Decoder(pipeline.vae)
    network = kind.adapt(getattr(pipeline, kind.network), int(scheduler.get("num_train_timesteps", 1000)))
    h, w = _side(network, decode.factor, options, path)
    tokens = h * w // network.patch**2
    schedule, predicts = read_schedule(scheduler, path / "scheduler", word(options, "prediction"), tokens)
    text = PipelineText(pipeline, kind.encode(network, h * decode.factor, w * decode.factor))
    shape = (network.channels, h, w)
    decided |= {"pipeline": folder.class_name, "shape": shape, "predicts": predicts, **kind.settings(folder.index)}
    return Checkpoint(
        name=name,
        digest=folder.digest(_read(pipeline, kind, unet), **decided),
        network=network.eval().requires_grad_(False),
        schedule=schedule,
        predicts=predicts,
        shape=shape,
        card={"pipeline": folder.class_name, "parameters": sum(p.numel() for p in network.parameters())},
        apart={"encode text": text.work, "decode": decode.work(shape)},
        text=text,
        decode=decode,
        image_shape=(3, h * decode.factor, w * decode.factor),
        scale_as_input=network.scale_as_input,
        reopen=lambda more: load(path, {**options, **more}, name, kind),
    )


def _read(pipeline: Any, kind: Kind, unet: Part | None) -> list[str]:
    """The components that were read from the pipeline's own folder."""
    there = [name for name, component in pipeline.components.items() if component is not None]
    return ["scheduler", *(name for name in there if not (unet and name == kind.network))]


def _assemble(folder: Folder, kind: Kind, unet: Part | None) -> Any:
    """The pipeline's object, its components in float32 on the CPU; without a scheduler and safety checkers.

    All components are looked for before one is read.
    """
    import diffusers  # seconds to import

    network = unet or folder.part(kind.network, kind.model)
    vae = folder.part("vae", "AutoencoderKL")
    encoders = {k: folder.part(k, c) for k, c in kind.encoders.items() if folder.has(k) or k not in kind.optional}
    components = {
        kind.network: other_unet.load(network) if unet else load_model(network),
        "vae": load_model(vae),
        "scheduler": None,
    }
    for encoder in kind.encoders:
        tokenizer = encoder.replace("text_encoder", "tokenizer")
        components[encoder] = load_encoder(encoders[encoder]) if encoder in encoders else None
        components[tokenizer] = load_tokenizer(folder, tokenizer) if encoder in encoders else None
    with quiet():
        return getattr(diffusers, folder.class_name)(**components, **kind.settings(folder.index))


def _side(network: Told, factor: int, options: Mapping[str, Option], path: Path) -> tuple[int, int]:
    """Rows and columns of the latents; raises UsageError for a resolution that the network or the autoencoder lacks."""
    h, w = network.side
    if "resolution" in options:
        given, multiple = int(options["resolution"]), factor * network.patch
        if given < multiple or given % multiple or given > factor * network.most:
            most = f", {factor * network.most} at most" if network.most < math.inf else ""
            raise UsageError(f"{path}: resolution={given} is no multiple of {multiple} pixels{most}")
        h = w = given // factor
    return h, w
