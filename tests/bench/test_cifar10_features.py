"""Features of photographs: the shipped classifier, its statistics, and a sweep that is compared with them."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import solvers
from bench.checkpoints import Checkpoint, Task
from bench.checkpoints.bundle import BUNDLED, read_bundle
from bench.checkpoints.cifar10 import training
from bench.checkpoints.cifar10.data import WHERE, photographs
from bench.checkpoints.cifar10.teacher import STATISTICS, network_of
from bench.errors import UsageError
from bench.images import ArrayImages
from bench.metrics import Chunk, Context, make_metric
from bench.metrics.cifar10_features import LAYER, WIDTH, Photographs
from bench.metrics.gaussian import Moments, distance
from bench.metrics.reference import OfImages, open_source
from bench.runner import prepare
from bench.spec import Sweep

SHIPPED = BUNDLED / "cifar10_jpeg_features"
CPU = torch.device("cpu")


def context(shape: tuple[int, ...] = (3, 32, 32)) -> Context:
    maker = Checkpoint("a test", "", nn.Identity(), solvers.EDM(), "data", shape, references=(str(STATISTICS),))
    return Context(maker, 0, Task(), Path(), CPU)


def images(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)


def test_what_is_shipped_is_small_and_says_how_good_it_is() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 12_000_000
    card = read_bundle(SHIPPED).card
    assert card["quality"]["test_accuracy"] >= 0.88
    assert card["data"] == "CIFAR-10 (JPEG copy)"


def test_features_are_the_same_in_any_chunk() -> None:
    found, batch = Photographs(context()), images(5)
    whole = found.extract(Chunk(0, None, batch))[LAYER]
    assert whole.shape == (5, WIDTH)
    assert (whole >= 0).all()
    parts = [found.extract(Chunk(i, None, batch[i : i + 1]))[LAYER] for i in range(5)]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-4, atol=1e-5)


def test_other_images_are_refused() -> None:
    with pytest.raises(UsageError, match="need 32x32 RGB images"):
        Photographs(context((1, 8, 8)))


def test_the_statistics_are_of_these_features() -> None:
    source = open_source(str(STATISTICS))
    assert isinstance(source, dict)
    tags = source[LAYER].tags
    assert tags is not None
    assert (tags.n, tags.shape, tags.family) == (50_000, (3, 32, 32), Photographs(context()).family)
    assert tags.name == "CIFAR-10 (JPEG copy) train"
    metric = make_metric("frechet_cifar10_jpeg", context())
    features = OfImages(ArrayImages("noise", images(600)), metric.extractor, LAYER).features
    (value,) = metric.compute(features, (1.0,))
    expected = distance(Moments.of(features), metric.reference.gaussian)  # type: ignore[attr-defined]
    assert value.value == pytest.approx(expected, rel=1e-9)
    assert value.value > 10 * value.se > 0


@pytest.mark.skipif(not os.environ.get(WHERE), reason=f"needs the photographs, {WHERE}")
def test_the_classifier_is_as_good_as_its_card_says() -> None:
    network = Photographs(context()).network
    found = training.accuracy(network, CPU)["quality"]["test_accuracy"]
    assert found == pytest.approx(read_bundle(SHIPPED).card["quality"]["test_accuracy"], abs=1e-3)
    assert len(photographs("test")[0]) == 10_000


def test_a_sweep_is_compared_with_the_shipped_statistics(tmp_path: Path) -> None:
    from bench.checkpoints.bundle import write_bundle

    unet = {"model_channels": 32, "channel_mult": (1, 1), "num_blocks": 1, "attn_resolutions": (16,)}
    write_bundle(tmp_path / "teacher", network_of(unet).state_dict(), {"checkpoint": "cifar10_jpeg", "unet": unet})
    sweep = Sweep(
        checkpoint=str(tmp_path / "teacher"), solvers=("ddim",), nfe=(2,), samples=20, latency=None,
        metrics=("frechet_cifar10_jpeg",),
    )  # fmt: skip
    job = prepare(sweep, tmp_path / "run", "cpu", 10)
    job.open()
    assert job.run("a test") == []
    (record,) = job.store.records()
    (value,) = record["metrics"]
    assert value["reference"]["data"] == "CIFAR-10 (JPEG copy) train"
    assert value["value"] > 0
