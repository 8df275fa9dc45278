"""What tests of feature networks share: files of the published architecture with random weights.

Numbers taken with them mean nothing; that they are the same by two ways does.
"""

import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from cleanfid import inception_pytorch
from torch import Tensor, nn

from bench.metrics.clean import PYTORCH_FID, TORCHSCRIPT, TorchScript
from bench.metrics.inception import WEIGHTS
from bench.metrics.weights import reachable
from tests.bench import tiny_text_pipelines
from tests.bench.costly import PLUGIN


class Program(nn.Module):
    """What clean-fid asks of its TorchScript file; the resizing is a stand-in for TensorFlow's."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        x = F.interpolate(x, size=[299, 299], mode="bilinear", align_corners=False)
        return self.layers((x - 128) / 128)


class First(nn.Module):
    """The only output of a network that gives a list."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.network(x)[0]
        return found


def random_state() -> dict[str, Tensor]:
    """Weights that keep the size of what passes through them, so that features differ from image to image."""
    network = torchvision.models.inception_v3(num_classes=1008, aux_logits=False, init_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
    return network.state_dict()


@pytest.fixture(scope="session")
def inceptions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Inception in every form that is published, under the published names."""
    folder, state = tmp_path_factory.mktemp("weights"), random_state()
    torch.save(state, folder / WEIGHTS.name)
    shutil.copy(folder / WEIGHTS.name, folder / PYTORCH_FID.name)
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")  # TorchScript's own deprecation
        patch.setattr(inception_pytorch, "load_state_dict_from_url", lambda *_, **__: state)
        network = inception_pytorch.InceptionV3(output_blocks=[3], resize_input=False, normalize_input=False).eval()
        layers = torch.jit.trace(nn.Sequential(First(network), nn.Flatten(1)), torch.zeros(1, 3, 299, 299))
        torch.jit.script(Program(layers)).save(str(folder / TORCHSCRIPT.name))
    return folder


@pytest.fixture(scope="session")
def text_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny text-to-image pipeline, by its builder's name in tiny_text_pipelines; each made once."""
    return cache(lambda name: tiny_text_pipelines.save(name, tmp_path_factory.mktemp(name)))


@pytest.fixture
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine without weights that no server answers; gives the folder where torch hub would keep them."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setattr(TorchScript, "file", replace(TORCHSCRIPT, also=()))
    reachable.cache_clear()
    yield tmp_path / "torch" / "hub" / "checkpoints"
    reachable.cache_clear()


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of checkpoints: the mixture of gmm, whose network does besides what a test needs."""
    path = tmp_path_factory.mktemp("plugin") / "networks.py"
    path.write_text(PLUGIN)
    return str(path)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A tiny pipeline by the function that makes it, and its options; made once, not to be changed."""
    made: dict[Any, Path] = {}

    def get(make: Callable[..., Path], **options: Any) -> Path:
        key = (make, *options.items())
        if key not in made:
            made[key] = make(tmp_path_factory.mktemp("pipelines") / make.__name__, **options)
        return made[key]

    return get
