"""Diversity of samples: total variance of features, and LPIPS between pairs of images."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch_fidelity.sample_similarity_lpips import NetLinLayer, SampleSimilarityLPIPS

from bench.checkpoints import Task, digits, load
from bench.checkpoints.base import unquantise
from bench.errors import UsageError
from bench.metrics import Chunk, Context, Metric, features, make_metric
from tests.bench.points import calibration, metric_of, value

LPIPS, VGG = "weights-vgg16-lpips.pth", "vgg16-397923af.pth"


@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(0.01, 100), shift=st.floats(-10, 10))
def test_diversity_is_the_ratio_of_total_variances(seed: int, scale: float, shift: float) -> None:
    x, y = np.random.default_rng(seed).normal(size=(2, 30, 4))
    found = value("diversity", scale * x + shift, y)
    assert found.value == pytest.approx(scale**2 * x.var(0, ddof=1).sum() / y.var(0, ddof=1).sum(), rel=1e-6)
    assert found.better == "neither"


def test_equal_samples_have_none_and_an_equal_reference_gives_no_scale() -> None:
    x = np.random.default_rng(0).normal(size=(30, 4))
    assert value("diversity", np.ones((30, 4)), x).value == 0
    with pytest.raises(UsageError, match="all equal"):
        value("diversity", x, np.ones((30, 4)))


def test_error_is_the_spread_over_repeated_samples() -> None:
    rng = np.random.default_rng(0)
    metric = metric_of("diversity", rng.normal(size=(100, 3)))
    (ratio,) = calibration(metric, [rng.gamma(2, size=(200, 3)) for _ in range(300)]).values()
    assert 0.85 < ratio < 1.15


def test_exact_draws_are_as_diverse_as_their_distribution() -> None:
    checkpoint = load("gmm")
    metric = make_metric("diversity", Context(checkpoint, 0, Task(), Path("unused"), torch.device("cpu")))
    (found,) = metric.evaluate(checkpoint.draw(0, 0, 5000).flatten(1).numpy(), ())
    assert abs(found.value - 1) < 3 * found.se < 0.05


@pytest.fixture(scope="module")
def random_lpips(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Torch hub's folder with random weights under the names of LPIPS's: the real path, meaningless distances."""
    home = tmp_path_factory.mktemp("torch")
    folder, g = home / "hub" / "checkpoints", torch.Generator().manual_seed(0)
    folder.mkdir(parents=True)
    with torch.device("meta"):
        vgg = torchvision.models.vgg16(weights=None).state_dict()
    state = {k: torch.zeros(1).expand(v.shape) for k, v in vgg.items()}  # one number a tensor on the disk
    for name in (k for k in state if k.startswith("features")):
        fan = vgg[name].numel() / len(vgg[name])
        state[name] = torch.randn(vgg[name].shape, generator=g) * (2 / fan) ** 0.5
    torch.save(state, folder / VGG)
    widths = enumerate((64, 128, 256, 512, 512))
    lins = {f"lin{i}.{k}": v for i, c in widths for k, v in NetLinLayer(c, use_dropout=True).state_dict().items()}
    torch.save({k: v.abs() for k, v in lins.items()}, folder / LPIPS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(home))
        yield folder


def lpips() -> Metric:
    context = Context(load("digits"), 0, Task(), Path("unused"), torch.device("cpu"))
    return make_metric("lpips(side=32, pairs=3)", context)


def test_lpips_is_the_mean_over_pairs_of_samples(random_lpips: Path) -> None:
    metric, images = lpips(), digits.real("heldout")[:9]
    (found,) = metric.evaluate(metric.extract(Chunk(0, None, images)), ())
    network = SampleSimilarityLPIPS("lpips-vgg16", sample_similarity_resize=32)
    grey = torch.from_numpy(images).repeat(1, 3, 1, 1)
    pairs = np.array([float(network(grey[i : i + 1], grey[i + 1 : i + 2])) for i in (0, 2, 4)])
    assert 0 < found.value == pytest.approx(pairs.mean(), rel=1e-5)
    assert 0 < found.se == pytest.approx(pairs.std(ddof=1) / 3**0.5, rel=1e-4)
    assert (found.n, len(found.parts), found.metric) == (6, 3, "lpips(pairs=3, side=32)")
    assert found.family in metric.identity
    (few,) = metric.evaluate(metric.extract(Chunk(0, None, images[:5])), ())
    assert (few.n, few.value) == (4, pytest.approx(pairs[:2].mean(), rel=1e-5))
    with pytest.raises(UsageError, match="take 4 or more"):
        metric.check(3)


def test_lpips_looks_at_no_more_images_than_it_pairs(random_lpips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "FIRST_IMAGES", 7)
    metric, images = lpips(), digits.real("heldout")[:9]
    parts = [metric.extract(Chunk(start, None, images[start : start + 3])) for start in (0, 3, 6)]
    np.testing.assert_allclose(np.concatenate(parts), unquantise(images[:7]).reshape(7, 64), atol=1e-6)
    with pytest.raises(UsageError, match="pairs=1001: give 1000 or fewer"):
        make_metric("lpips(pairs=1001)", metric.context)


def test_lpips_says_which_weights_it_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UsageError, match=rf"needs {LPIPS} in {tmp_path}/hub/checkpoints"):
        lpips()


def test_lpips_refuses_other_weights(random_lpips: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / VGG).symlink_to(random_lpips / VGG)
    torch.save({"lin0.model.1.weight": torch.zeros(3)}, folder / LPIPS)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UsageError, match="holds another network"):
        lpips()
    (folder / LPIPS).write_bytes(b"no weights")
    with pytest.raises(UsageError, match="it is no file of tensors"):
        lpips()
