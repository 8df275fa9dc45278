"""Tiny networks of EDM, EDM2 and ADM that the official code was run with once: their arguments, weights and inputs.

Weights and inputs are drawn from a seed here and there, so that only names, shapes and outputs had to be kept.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.checkpoints.unpickle import Saved

FILE = Path(__file__).parent / "recorded" / "networks.npz"
BATCH = 3
SMALL = {"model_channels": 16, "num_blocks": 1, "channel_mult": [1, 2], "attn_resolutions": [8]}
NCSNPP = {
    "embedding_type": "fourier", "encoder_type": "residual", "channel_mult_noise": 2, "resample_filter": [1, 3, 3, 1],
}  # fmt: skip
ADM = {"model_channels": 64, "num_blocks": 1, "channel_mult": [1, 2], "attn_resolutions": [4]}


@dataclass(frozen=True)
class Case:
    """An outer network's class and arguments as EDM's pickles hold them, and the noise levels of the three samples."""

    class_name: str
    arguments: Mapping[str, Any]
    sigmas: tuple[float, ...]


def _song(class_name: str, sigmas: tuple[float, ...], resolution: int = 16, **arguments: Any) -> Case:
    model = {"model_type": "SongUNet", "img_resolution": resolution, "img_channels": 3, "label_dim": 0}
    return Case(class_name, model | SMALL | arguments, sigmas)


def _dhariwal(class_name: str, sigmas: tuple[float, ...], **arguments: Any) -> Case:
    model = {"model_type": "DhariwalUNet", "img_resolution": 8, "img_channels": 3, "label_dim": 0}
    return Case(class_name, model | ADM | arguments, sigmas)


def _edm2(sigmas: tuple[float, ...], channels: int, **arguments: Any) -> Case:
    model = {"img_resolution": 8, "img_channels": channels, "use_fp16": True, "num_blocks": 1, "channel_mult": [1, 2]}
    return Case("Precond", model | {"logvar_channels": 8} | arguments, sigmas)


CASES = {
    "vp-ddpmpp": _song("VPPrecond", (0.5, 2.0, 150.0), augment_dim=9, dropout=0.1),
    "ve-ncsnpp": _song("VEPrecond", (0.02, 3.0, 99.0), label_dim=10, channel_mult=[1, 2, 2], **NCSNPP),
    "edm-ddpmpp": _song("EDMPrecond", (0.002, 0.5, 80.0), label_dim=10, attn_resolutions=[16, 8], use_fp16=True),
    "edm-ncsnpp": _song("EDMPrecond", (0.01, 0.7, 70.0), sigma_data=0.7, augment_dim=9, resample_filter=[1, 3, 3, 1],
                        num_blocks=2, embedding_type="fourier", encoder_type="residual"),
    "vp-wide-filter": _song("VPPrecond", (0.7, 5.0, 30.0), resample_filter=[1, 3, 3, 1], label_dim=4,
                            attn_resolutions=[]),
    "iddpm-adm": _dhariwal("iDDPMPrecond", (0.03, 1.1, 40.0), M=100, attn_resolutions=[8, 4]),
    "edm-adm": _dhariwal("EDMPrecond", (0.002, 0.4, 60.0), label_dim=1000, label_dropout=0.1),
    "edm2-pixels": _edm2((0.002, 0.6, 80.0), 3, label_dim=20, model_channels=64, attn_resolutions=[4]),
    "edm2-latents": _edm2((0.01, 0.3, 20.0), 4, label_dim=0, model_channels=64, attn_resolutions=[8, 4], sigma_data=0.8,
                          channel_mult_noise=1, channel_mult_emb=2, channels_per_head=16, label_balance=0.4,
                          concat_balance=0.4, res_balance=0.35, attn_balance=0.25, clip_act=2),
}  # fmt: skip

ADM_LABELS = (0, 37, 999)  # of the three samples
ADM_CASES = {  # of guided-diffusion's create_model, by its names
    "adm-legacy": {"image_size": 8, "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1,2", "class_cond": True,
                   "learn_sigma": True, "attention_resolutions": "4", "num_heads": 4},
    "adm-new": {"image_size": 16, "num_channels": 64, "num_res_blocks": 2, "channel_mult": "1,1,2", "class_cond": False,
                "learn_sigma": False, "attention_resolutions": "8,4", "num_head_channels": 32,
                "use_new_attention_order": True},
}  # fmt: skip


def draw(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Weights under these names, drawn in the order of the names; of a size at which no layer dies or blows up."""
    generator = np.random.Generator(np.random.Philox(seed))
    found = {}
    for name in sorted(shapes):
        z = torch.from_numpy(generator.standard_normal(shapes[name]).astype(np.float32))
        if z.ndim > 1:
            z = z / math.sqrt(z[0].numel())
        elif not name.endswith(("freqs", "phases")):
            z = 0.2 * z + (1 if name.endswith(("weight", "gain")) else 0)
        found[name] = z
    return found


def inputs(shape: tuple[int, ...], classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Unit noise x (3, *shape), float32, and classes y (3,), of which the last is no class."""
    generator = np.random.Generator(np.random.Philox(seed))
    y = [*generator.integers(0, max(classes, 1), BATCH - 1), classes]
    return torch.from_numpy(generator.standard_normal((BATCH, *shape)).astype(np.float32)), torch.tensor(y)


def recorded(name: str) -> tuple[Mapping[str, tuple[int, ...]], Tensor]:
    """The official network's names and shapes of tensors, and its output (3, C, R, R) in float32."""
    with np.load(FILE) as held:
        shapes = {k: tuple(v) for k, v in json.loads(str(held[f"{name}/shapes"])).items()}
        return shapes, torch.from_numpy(held[f"{name}/output"])


def tensors(name: str) -> dict[str, Tensor]:
    """The tensors of a case as its file holds them."""
    shapes, _ = recorded(name)
    found = draw({k: v for k, v in shapes.items() if k.rpartition(".")[2] not in ("u", "resample_filter")}, seed=1)
    found |= {k: torch.full(v, 0.25) for k, v in shapes.items() if k.endswith("resample_filter")}
    if "u" in shapes:
        with np.load(FILE) as held:
            found["u"] = torch.from_numpy(held[f"{name}/u"])
    return found


def saved(name: str) -> Saved:
    """What a pickle of a case holds."""
    return Saved(CASES[name].class_name, CASES[name].arguments, tensors(name))
