"""The first latent diffusion that was told of prompts, by a transformer of its own: CompVis' ldm-text2im-large-256.

Rombach et al. 2022, arXiv 2112.10752.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.checkpoints.base import Checkpoint
from bench.checkpoints.pipelines import unet
from bench.checkpoints.pipelines.files import SCHEDULER, load_model, open_folder, quiet
from bench.checkpoints.pipelines.latent import AUTOENCODERS, latent_side
from bench.checkpoints.pipelines.options import check_options, word
from bench.checkpoints.pipelines.schedule import label_count, read_schedule
from bench.checkpoints.pipelines.stable_diffusion import ToldUNet
from bench.checkpoints.pipelines.text import PipelineText, load_encoder, load_tokenizer
from bench.checkpoints.pipelines.vae import Decoder
from solvers import Option

TOKENS = 77  # a prompt's, however long


def load(path: Path, options: Mapping[str, Option], name: str) -> Checkpoint:
    """An LDMTextToImagePipeline; raises UsageError, UnknownNameError."""
    import diffusers  # seconds to import

    check_options(name, options)
    folder = open_folder(path, word(options, "variant"))
    scheduler = folder.scheduler()
    schedule, predicts = read_schedule(scheduler, path / SCHEDULER, word(options, "prediction"))
    N = label_count(schedule, path)
    parts = [folder.part("unet", "UNet2DConditionModel"), folder.part("vqvae", *AUTOENCODERS)]
    encoder, tokenizer = load_encoder(folder.part("bert", "LDMBertModel")), load_tokenizer(folder, "tokenizer")
    model, autoencoder = map(load_model, parts)
    with quiet():
        pipeline = diffusers.LDMTextToImagePipeline(autoencoder, encoder, tokenizer, model, None)
    network, decode, text = ToldUNet(model, N), Decoder(autoencoder), PipelineText(pipeline, _states)
    h, w = latent_side(network.side, decode.factor, 2 ** (len(model.config.block_out_channels) - 1), options, path)
    shape = (network.channels, h, w)
    return Checkpoint(
        name=name,
        digest=folder.digest(
            ["unet", "vqvae", "bert", "tokenizer", "scheduler"], predicts=predicts, resolution=f"{h}x{w}"
        ),
        network=network,
        schedule=schedule,
        predicts=predicts,
        shape=shape,
        card=unet.about(folder, network, scheduler),
        apart={"encode text": text.work, "decode": decode.work(shape)},
        text=text,
        decode=decode,
        image_shape=(3, h * decode.factor, w * decode.factor),
    )


def _states(pipeline: Any, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
    """The encoder's last states for each token, padding included."""
    tokens = pipeline.tokenizer(
        prompts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
    return {"prompt": pipeline.bert(tokens.to(device))[0]}
