"""torch-fidelity's Inception and `fid`, next to the package's own results on the same files of images."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
from torch import Tensor
from torch_fidelity import register_feature_extractor
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from bench.metrics import Chunk, make_metric
from bench.metrics.features import extractor
from bench.metrics.inception import WEIGHTS
from tests.bench.pictures import Bytes, context, distance, pictures, projection, save

ONTO = projection(2048, 3)
SETS = {"colour": (3, 16, 16), "grey": (1, 8, 8)}


class Projected(FeatureExtractorInceptionV3):
    """torch-fidelity's extractor, its features on fewer dimensions than there are images."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        (found,) = super().forward(x)
        return (found.double() @ torch.from_numpy(ONTO),)


register_feature_extractor("projected-inception", Projected)


def features_of(weights: Path, *sets: Bytes) -> list[np.ndarray]:
    extract = extractor(context(weights, sets[0]), "inception").extract
    return [extract(Chunk(0, None, images))["inception"] for images in sets]


@pytest.mark.parametrize("kind", SETS)
def test_fid_of_images_in_memory_is_torch_fidelitys_of_their_files(kind: str, inceptions: Path, tmp_path: Path) -> None:
    a, b = pictures(0, 5, SETS[kind]), pictures(1, 4, SETS[kind]) // 2
    theirs = torch_fidelity.calculate_metrics(
        input1=str(save(a, tmp_path / "a")), input2=str(save(b, tmp_path / "b")), fid=True, cuda=False, cache=False,
        feature_extractor="projected-inception", feature_layer_fid="2048", verbose=False, save_cpu_ram=True,
        feature_extractor_weights_path=str(inceptions / WEIGHTS.name),
    )  # fmt: skip
    ours = distance(*(features @ ONTO for features in features_of(inceptions, a, b)))
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)
    assert ours > 0.01


def test_fid_is_the_distance_in_all_features(inceptions: Path, tmp_path: Path) -> None:
    """The trace of the root of a product of covariances is the nuclear norm of the product of their factors."""
    a, b = pictures(0, 3, SETS["grey"]), pictures(1, 4, SETS["grey"])
    metric = make_metric("fid", context(inceptions, b, tmp_path))
    (value,) = metric.evaluate(metric.extract(Chunk(0, None, a)), (1.0, 0.0))
    x, y = (features.astype(np.float64) for features in features_of(inceptions, a, b))
    u, v = (x - x.mean(0)) / 2**0.5, (y - y.mean(0)) / 3**0.5
    shift = ((x.mean(0) - y.mean(0)) ** 2).sum()
    expected = shift + (u**2).sum() + (v**2).sum() - 2 * np.linalg.svd(u @ v.T, compute_uv=False).sum()
    assert value.value == pytest.approx(expected, rel=1e-6)
    assert (value.n, value.reference["n"], value.metric) == (3, 4, "fid")
    assert metric.warnings(3) == ["fid: 3 samples for 2048 features: the distance is mostly bias; take 4096 or more"]


def test_both_layers_come_from_one_pass_and_are_torch_fidelitys(inceptions: Path) -> None:
    images, path = pictures(0, 2, SETS["colour"]), str(inceptions / WEIGHTS.name)
    network = FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"], feature_extractor_weights_path=path)
    made = context(inceptions, images)
    both = extractor(made, "inception")
    assert extractor(made, "inception_logits") is both
    found = both.extract(Chunk(0, None, images))
    for layer, expected in zip(("inception", "inception_logits"), network(torch.from_numpy(images)), strict=True):
        assert found[layer].dtype == np.float32
        assert found[layer].shape == (2, both.width(layer))
        np.testing.assert_array_equal(found[layer], expected.numpy())


def test_features_do_not_depend_on_what_else_is_in_the_pass(inceptions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(0, 3, SETS["grey"])
    network = extractor(context(inceptions, images), "inception")
    whole = network.extract(Chunk(0, None, images))["inception"]
    monkeypatch.setattr("bench.metrics.networks.PASS", 2)
    np.testing.assert_allclose(network.extract(Chunk(0, None, images))["inception"], whole, rtol=1e-4, atol=1e-5)


def test_a_download_is_what_the_package_would_download() -> None:
    assert (WEIGHTS.url, WEIGHTS.name) == (URL_INCEPTION_V3, Path(URL_INCEPTION_V3).name)
    assert WEIGHTS.digest.startswith(Path(URL_INCEPTION_V3).stem.rpartition("-")[2])
