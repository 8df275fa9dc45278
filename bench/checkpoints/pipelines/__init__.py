"""Folders of the diffusers library: pipelines, and models alone."""

from collections.abc import Mapping
from pathlib import Path

from bench.checkpoints.base import Checkpoint
from bench.checkpoints.pipelines.files import Folder
from bench.errors import UsageError
from solvers import Option
from solvers.registry import Registry

HERE = "bench.checkpoints.pipelines"
LOADERS = {  # by the class that model_index.json names, or a lone model's config.json
    "DDPMPipeline": f"{HERE}.pixel:load",
    "DDIMPipeline": f"{HERE}.pixel:load",
    "PNDMPipeline": f"{HERE}.pixel:load",
    "UNet2DModel": f"{HERE}.pixel:load",
    "ConsistencyModelPipeline": f"{HERE}.pixel:load",
    "DiTPipeline": f"{HERE}.latent:load_dit",
    "LDMPipeline": f"{HERE}.latent:load_ldm",
    "LDMTextToImagePipeline": f"{HERE}.ldm_text:load",
    "StableDiffusionPipeline": f"{HERE}.stable_diffusion:load",
    "StableDiffusionXLPipeline": f"{HERE}.stable_diffusion:load_xl",
    "LatentConsistencyModelPipeline": f"{HERE}.stable_diffusion:load",
    "StableDiffusion3Pipeline": f"{HERE}.flow:load_sd3",
    "FluxPipeline": f"{HERE}.flow:load_flux",
}


def load(path: Path, options: Mapping[str, Option], name: str) -> Checkpoint:
    """The checkpoint in a folder of diffusers, called `name`; raises UsageError, UnknownNameError."""
    class_name = Folder(path).class_name
    if class_name not in LOADERS:
        raise UsageError(f"{path} is a {class_name}: what runs here is {', '.join(LOADERS)}")
    loaded: Checkpoint = Registry("pipeline", "", LOADERS).get(class_name)(path, options, name)
    return loaded
