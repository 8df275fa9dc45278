"""clean-fid's three modes, next to the package's own results on the same files of images."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy
import torch
from cleanfid import fid, inception_pytorch
from cleanfid.downloads_helper import inception_url
from cleanfid.features import build_feature_extractor
from cleanfid.inception_torchscript import InceptionV3W
from torch import Tensor

from bench.metrics import Chunk, clean
from bench.metrics.features import extractor
from tests.bench.pictures import CPU, context, distance, pictures, projection, save

MODES = {
    "clean": "inception_clean",
    "legacy_tensorflow": "inception_legacy_tf",
    "legacy_pytorch": "inception_legacy_pt",
}
ONTO = projection(2048, 3)
OLD_SCIPY = tuple(map(int, scipy.__version__.split(".")[:2])) < (1, 18)  # clean-fid's distance fails from there on


def network(mode: str, weights: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Tensor], Tensor]:
    """clean-fid's own, by the package's own way to its weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if mode != "legacy_pytorch":
            return InceptionV3W(str(weights), download=False, resize_inside=mode == "legacy_tensorflow").eval()
        (home / "hub").mkdir()
        (home / "hub" / "checkpoints").symlink_to(weights)
        monkeypatch.setenv("TORCH_HOME", str(home))
        return build_feature_extractor(mode, device=CPU, use_dataparallel=False)


def theirs(a: Path, b: Path, mode: str, model: Callable[[Tensor], Tensor]) -> float:
    """The package's distance of two folders, on fewer dimensions than there are images."""

    def projected(x: Tensor) -> Tensor:
        return model(x).double() @ torch.from_numpy(ONTO)

    settings: dict[str, Any] = {"mode": mode, "num_workers": 0, "device": CPU, "verbose": False}
    if OLD_SCIPY:
        return float(fid.compute_fid(str(a), str(b), custom_feat_extractor=projected, **settings))
    x, y = (fid.get_folder_features(str(folder), projected, **settings) for folder in (a, b))
    S, R, shift = np.cov(x, rowvar=False), np.cov(y, rowvar=False), x.mean(0) - y.mean(0)
    return float(shift @ shift + np.trace(S + R - 2 * scipy.linalg.sqrtm(S @ R).real))


@pytest.mark.filterwarnings("ignore:The `disp` argument is deprecated:DeprecationWarning")
@pytest.mark.parametrize("mode", MODES)
def test_distance_of_images_in_memory_is_clean_fids_of_their_files(
    mode: str, inceptions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, layer = (1, 8, 8) if mode == "clean" else (3, 16, 12), MODES[mode]
    a, b = pictures(0, 5, shape), pictures(1, 4, shape) // 2
    folders = save(a, tmp_path / "a"), save(b, tmp_path / "b")
    expected = theirs(*folders, mode, network(mode, inceptions, tmp_path, monkeypatch))
    extract = extractor(context(inceptions, a), layer).extract
    ours = distance(*(extract(Chunk(0, None, images))[layer] @ ONTO for images in (a, b)))
    assert ours == pytest.approx(expected, rel=1e-6)
    assert ours > 0.01


def test_the_modes_are_families_of_their_own(inceptions: Path) -> None:
    """And they differ by far more than rounding, on images that must be enlarged."""
    images = pictures(0, 2, (3, 16, 16))
    made = context(inceptions, images)
    found = {layer: extractor(made, layer) for layer in ("inception", *MODES.values())}
    assert len({e.family for e in found.values()}) == 4
    clean, bilinear = (found[f"inception_{m}"].extract(Chunk(0, None, images)) for m in ("clean", "legacy_pt"))
    a, b = clean["inception_clean"], bilinear["inception_legacy_pt"]
    assert abs(a - b).mean() > 1e-2 * abs(a).mean()


def test_bilinear_resizing_leaves_warnings_on(inceptions: Path) -> None:
    """clean-fid's own builder of that resizer silences the whole process."""
    images = pictures(0, 1, (3, 8, 8))
    before = list(warnings.filters)
    extractor(context(inceptions, images), "inception_legacy_pt").extract(Chunk(0, None, images))
    assert warnings.filters == before


def test_a_download_is_what_the_package_would_download() -> None:
    assert clean.TORCHSCRIPT.url == inception_url
    assert clean.PYTORCH_FID.url == inception_pytorch.FID_WEIGHTS_URL
    assert (clean.TORCHSCRIPT.name, clean.PYTORCH_FID.name) == (
        Path(inception_url).name, Path(inception_pytorch.FID_WEIGHTS_URL).name,
    )  # fmt: skip
