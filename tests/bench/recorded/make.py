"""Records what the official networks give: python tests/bench/recorded/make.py EDM EDM2 GUIDED_DIFFUSION.

The three are checkouts of NVlabs/edm, NVlabs/edm2 and openai/guided-diffusion; the recording was made from commits
008a4e5, 4bf8162 and 22e0df8, on a CPU with torch 2.15, in float32, their code as it is.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT))
from tests.bench import recorded_networks as recipe  # noqa: E402


def official(checkout: str, module: str) -> Any:
    """A module of a checkout, of which others may have the same name."""
    for name in [n for n in sys.modules if n.split(".")[0] in ("training", "torch_utils", "dnnlib")]:
        del sys.modules[name]
    sys.path.insert(0, checkout)
    try:
        return importlib.import_module(module)
    finally:
        sys.path.remove(checkout)


def filled(network: Any) -> dict[str, Any]:
    """Draw the network's weights, all but what it computes itself, and give the shapes of all it holds."""
    own = network.state_dict()
    shapes = {k: list(v.shape) for k, v in own.items()}
    kept = {k: v for k, v in own.items() if k.rpartition(".")[2] in ("u", "resample_filter")}
    network.load_state_dict(recipe.draw({k: v for k, v in shapes.items() if k not in kept}, seed=1) | kept)
    network.eval().requires_grad_(False)
    return shapes


def of_edm(module: Any, case: recipe.Case) -> tuple[Any, dict[str, Any], torch.Tensor]:
    """The network, names with shapes, and D(x; sigma) for the case's inputs."""
    network = getattr(module, case.class_name)(**case.arguments)
    shapes, classes = filled(network), network.label_dim
    x, y = recipe.inputs((network.img_channels, *[network.img_resolution] * 2), classes, seed=2)
    sigma = torch.tensor(case.sigmas)
    labels = torch.eye(classes + 1)[y][:, :classes] if classes else None
    return network, shapes, network(x * sigma[:, None, None, None], sigma, labels)


def main(edm: str, edm2: str, guided: str) -> None:
    kept: dict[str, Any] = {}
    for name, case in recipe.CASES.items():
        home = (edm2, "training.networks_edm2") if case.class_name == "Precond" else (edm, "training.networks")
        network, shapes, output = of_edm(official(*home), case)
        kept |= {f"{name}/shapes": json.dumps(shapes), f"{name}/output": output.numpy()}
        if hasattr(network, "u"):
            kept[f"{name}/u"] = network.u.numpy()
    sys.path.insert(0, guided)
    script_util = importlib.import_module("guided_diffusion.script_util")
    for name, options in recipe.ADM_CASES.items():
        usual = {"use_scale_shift_norm": True, "resblock_updown": True}
        network = script_util.create_model(**usual | options)
        shapes = filled(network)
        x, y = recipe.inputs((3, *[options["image_size"]] * 2), 1000, seed=2)
        labels = y.clip(0, 999) if options["class_cond"] else None
        output = network(x, torch.tensor(recipe.ADM_LABELS), labels)
        kept |= {f"{name}/shapes": json.dumps(shapes), f"{name}/output": output.numpy()}
    np.savez_compressed(recipe.FILE, **kept)


if __name__ == "__main__":
    main(*sys.argv[1:])
