"""Another UNet in the place of a pipeline's own, as distilled students are published: a folder, or bare weights."""

import json
from pathlib import Path
from typing import Any

import torch

from bench.checkpoints.pipelines.files import Folder, Part, load_model, open_folder, read_tensors
from bench.errors import UsageError
from bench.files import sha256
from bench.metrics.weights import digest_of

SAME = ("in_channels", "out_channels", "cross_attention_dim", "addition_embed_type")  # what the others build on


def find(path: Path, base: Folder, model: str) -> Part:
    """The UNet at a path: a folder's own config counts, and bare weights have the config of the base's UNet.

    Raises UsageError when there is none, or it does not go with the base's text encoders and latents.
    """
    own = base.part("unet", model)
    if path.is_file():
        return Part(path, model, own.config, (path,), None)
    if not path.is_dir():
        raise UsageError(f"unet: {path} is not there: give a folder with config.json, or a file of weights")
    part = open_folder(path).part("unet", model)
    for key in SAME:
        if part.config.get(key) != own.config.get(key):
            ours, theirs = own.config.get(key), part.config.get(key)
            raise UsageError(f"unet: {path} does not go with {base.path}: its {key} is {theirs}, not {ours}")
    return part


def load(part: Part) -> Any:
    """The UNet in float32; raises UsageError where the weights are not those of its config."""
    if part.folder.is_dir():
        return load_model(part)
    import diffusers  # seconds to import

    state = {k: v.float() for k, v in read_tensors(part.folder).items()}
    with torch.device("meta"):  # no time for random weights that nobody uses
        model = getattr(diffusers, part.class_name).from_config(dict(part.config))
    wanted = {k: v.shape for k, v in model.state_dict().items()}
    given = {k: v.shape for k, v in state.items()}
    if wrong := [k for k in {*wanted, *given} if wanted.get(k) != given.get(k)]:
        raise UsageError(
            f"unet: {part.folder} does not hold the weights of this pipeline's UNet: {len(wrong)} names or shapes "
            f"differ, such as {min(wrong)}"
        )
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def digest(part: Part) -> str:
    """Of its config and weights."""
    config = {k: v for k, v in part.config.items() if not k.startswith("_")}
    return sha256(json.dumps([config, *map(digest_of, part.weights)], sort_keys=True).encode())
