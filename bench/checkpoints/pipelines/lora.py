"""Low-rank adapters, fused into the weights of a pipeline so that its networks run as fast as before."""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.checkpoints.pipelines.files import quiet, read_tensors
from bench.errors import UsageError
from bench.metrics.weights import in_short

USUAL = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")
DOWN = re.compile(r"(lora_A|lora_down|lora\.down|layer\.down)(\.\w+)?\.weight$")  # the first factor of a layer's two


def find(path: Path) -> Path:
    """The file with the adapter: this one, or the one in this folder; raises UsageError when there is not just one."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise UsageError(f"lora: {path} is not there: give a file, or a folder with one")
    usual = [path / name for name in USUAL if (path / name).is_file()]
    found = usual[:1] or sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "no *.safetensors"
        raise UsageError(f"lora: {path} holds {names}: name one file")
    return found[0]


def fuse(pipeline: Any, path: Path, scale: float) -> None:
    """Add the adapter in a file, `scale` times, to the weights of the pipeline's networks that it has parts for.

    The formats are those that diffusers reads: its own, PEFT's, kohya's.  Raises UsageError where a part fits no layer.
    """
    state = read_tensors(path)
    networks = {n: m for n in pipeline._lora_loadable_modules if (m := getattr(pipeline, n, None)) is not None}
    safe = path.suffix == ".safetensors"  # then the file itself is read, which may hold scales beside tensors
    try:
        with quiet():
            parts = _parts(pipeline, str(path) if safe else dict(state))  # copies: the readers take tensors out
            pipeline.load_lora_weights(str(path) if safe else dict(state))
            fitting = sum(map(_layers, networks.values()))
            if not parts or fitting != parts:
                raise ValueError(f"{fitting} of its {parts} layers are in this pipeline")
            pipeline.fuse_lora(components=list(networks), lora_scale=scale)
            pipeline.unload_lora_weights()
    except Exception as error:  # the readers fail in any way on what is no adapter, or another network's
        kind = type(pipeline).__name__
        raise UsageError(f"lora: {path} is no adapter of this {kind}: {in_short(error)}") from error


def _parts(pipeline: Any, source: str | dict[str, Tensor]) -> int:
    """How many layers the adapter is for."""
    config = {"unet_config": pipeline.unet.config} if hasattr(pipeline, "unet") else {}
    found = pipeline.lora_state_dict(source, **config)
    state = found[0] if isinstance(found, tuple) else found  # with alphas apart, or without
    return sum(bool(DOWN.search(key)) for key in state)


def _layers(network: Any) -> int:
    """How many layers an adapter was loaded into."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return sum(isinstance(module, BaseTunerLayer) for module in network.modules())
