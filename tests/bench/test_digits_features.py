"""The digits classifier's features, and their distance next to torch-fidelity's own."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

import solvers
from bench.checkpoints import Checkpoint, Task, digits, load
from bench.metrics import Chunk, Context, make_metric
from bench.metrics.digits_features import classifier
from bench.metrics.features import extractor
from tests.bench.fidelity import LAYER, NAME

Images = NDArray[np.uint8]


class Bytes(Dataset[Tensor]):
    """Images as torch-fidelity takes them: uint8 tensors (C, H, W)."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        return torch.from_numpy(self.images[i])


def features_of(images: Images) -> NDArray[np.float32]:
    """As metrics of the shipped digits take them."""
    context = Context(load("digits"), 0, Task(), Path("unused"), torch.device("cpu"))
    return np.asarray(extractor(context, "digits").extract(Chunk(0, None, images))["digits"])


def distance(samples: Images, reference: Images, cache: Path) -> float:
    """`frechet_digits` of images against a checkpoint whose real images are `reference`."""
    checkpoint = Checkpoint(
        "halves", "", nn.Identity(), solvers.EDM(), "data", (1, 8, 8), (1.0,), "image", (), {}, lambda: reference
    )
    metric = make_metric("frechet_digits", Context(checkpoint, 0, Task(), cache, torch.device("cpu")))
    (value,) = metric.evaluate(metric.extract(Chunk(0, None, samples)), (1.0, 0.0))
    assert (value.n, value.reference["n"]) == (len(samples), len(reference))
    return value.value


def test_extractor_gives_the_classifiers_features() -> None:
    images = digits.real("heldout")
    expected = classifier()[0].features(torch.from_numpy(images / 127.5 - 1).float())
    assert expected.shape == (360, 64)
    np.testing.assert_allclose(features_of(images), expected, atol=1e-5)


def test_features_tell_images_apart() -> None:
    features = features_of(digits.real("heldout"))
    assert np.linalg.matrix_rank(np.cov(features, rowvar=False)) > 32


def test_distance_is_torch_fidelitys_on_the_same_images(tmp_path: Path) -> None:
    images = digits.real("train")
    a, b = images[::2], images[1::2]
    theirs = torch_fidelity.calculate_metrics(
        input1=Bytes(a), input2=Bytes(b), feature_extractor=NAME, feature_layer_fid=LAYER, fid=True, cuda=False,
        cache=False, verbose=False, save_cpu_ram=True,
    )  # fmt: skip
    assert distance(a, b, tmp_path) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)


def test_distance_sees_a_missing_class(tmp_path: Path) -> None:
    images, labels = digits.real("train"), digits.data()["train"][1].numpy()
    a, b = images[::2], images[1::2]
    assert distance(a[labels[::2] != 3], b, tmp_path) > 3 * distance(a, b, tmp_path)


def test_classifier_reads_held_out_digits() -> None:
    images, labels = digits.data()["heldout"]
    accuracy = (classifier()[0](images).argmax(1) == labels).double().mean()
    assert accuracy >= 0.97
