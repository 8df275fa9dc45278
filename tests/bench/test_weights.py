"""Files of weights: found, named by digest, fetched, refused; and DINOv2 and CLIP by files with random weights."""

import os
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch_fidelity.feature_extractor_clip import MODEL_URLS, CLIPVisual, FeatureExtractorCLIP

from bench.errors import UsageError
from bench.metrics import METRICS, Chunk, clip, dinov2
from bench.metrics.clean import PYTORCH_FID, TORCHSCRIPT
from bench.metrics.features import FEATURES, extractor
from bench.metrics.inception import WEIGHTS, Inception
from bench.metrics.weights import WeightsFile, digest_of, reachable, read_state
from bench.show import print_list
from bench.store import Store
from tests.bench.pictures import context, pictures, save
from tests.chaos.nest import Nest

IMAGES = pictures(0, 2, (3, 8, 8))
BICUBIC = Image.Resampling.BICUBIC


class Imports:
    """What pickle writes down as a call of a function of `os`."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch imported",)


def short(path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(1008, 2048)}, path)


def text(path: Path) -> None:
    path.write_text("no weights")


def imports(path: Path) -> None:
    torch.save({"fc.weight": Imports()}, path)


def program(path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(3, 2), torch.zeros(1, 3)), str(path))


def cut(path: Path) -> None:
    torch.save({"x": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("wrong", [short, text, imports, program, cut])
@pytest.mark.parametrize("layer", ["inception", "inception_clean", "inception_legacy_pt"])
def test_a_file_that_is_something_else_is_refused_at_once(
    layer: str, wrong: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.pth"
    wrong(path)  # type: ignore[operator]
    with pytest.raises(UsageError, match=r"mine\.pth (is refused|does not hold|gives features)") as caught:
        extractor(context(path, IMAGES), layer)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)
    assert not Path("imported").exists()


def test_a_file_that_would_import_is_said_to(tmp_path: Path) -> None:
    imports(tmp_path / "mine.pth")
    with pytest.raises(UsageError, match=r"asks to import (posix|nt)\.system"):
        read_state(tmp_path / "mine.pth")


@pytest.mark.parametrize("layer", ["inception", "inception_clean", "inception_legacy_pt", "dinov2", "clip"])
def test_offline_without_weights_one_line_says_which_where_and_what_else(layer: str, no_weights: Path) -> None:
    with pytest.raises(UsageError, match="without it work frechet_pixels") as caught:
        extractor(context(None, IMAGES), layer)
    assert str(no_weights.parent) in str(caught.value)
    lacks = FEATURES.get(layer).missing(None)
    assert lacks.split()[0] in str(caught.value) or layer == "dinov2"


@pytest.mark.parametrize("given", ["file", "folder", "home", "home though there is a folder"])
def test_weights_are_found_where_they_were_given_or_are_kept(
    given: str, inceptions: Path, no_weights: Path, tmp_path: Path
) -> None:
    if given == "file":
        weights = (tmp_path / "mine.pth").resolve()
        weights.symlink_to(inceptions / WEIGHTS.name)
    elif given == "folder":
        weights = inceptions
    else:
        no_weights.mkdir(parents=True)
        (no_weights / WEIGHTS.name).symlink_to(inceptions / WEIGHTS.name)
        weights = None if given == "home" else tmp_path
    digest = sha256((inceptions / WEIGHTS.name).read_bytes()).hexdigest()
    found = extractor(context(weights, IMAGES), "inception")
    assert found.family == f"inception torch-fidelity {digest[:12]} (not the published weights)"
    assert Inception.missing(weights) is None


def test_published_weights_are_read_when_they_are_first_used(inceptions: Path) -> None:
    class Published(Inception):
        file = replace(WEIGHTS, digest=digest_of(inceptions / WEIGHTS.name))

    found = Published(context(inceptions, IMAGES))
    assert found.family == f"inception torch-fidelity {Published.file.digest[:12]}"
    assert "network" not in vars(found)
    assert found.extract(Chunk(0, None, IMAGES))["inception"].shape == (2, 2048)


def test_weights_that_are_not_where_they_were_said_to_be_are_missed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"inception_weights: .*nowhere is not there: give weights-inception"):
        extractor(context(tmp_path / "nowhere", IMAGES), "inception")


def test_a_single_file_is_inceptions(inceptions: Path, no_weights: Path) -> None:
    assert clip.WEIGHTS.find(inceptions / WEIGHTS.name) is None
    assert TORCHSCRIPT.find(inceptions / WEIGHTS.name) == inceptions / WEIGHTS.name


def test_where_anybody_may_put_files_only_the_published_one_counts(no_weights: Path, tmp_path: Path) -> None:
    for content, found in ((b"forged", None), (b"weights", tmp_path / "published")):
        (tmp_path / "published").write_bytes(content)
        assert replace(published("http://127.0.0.1:9"), also=(tmp_path,)).find(None) == found


def test_a_changed_file_has_another_digest(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"one", b"other"):
        path.write_bytes(content)
        assert digest_of(path) == sha256(content).hexdigest()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a server of the file `published`."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "published").write_bytes(b"weights")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "served"))) as served:
        threading.Thread(target=served.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}/published"
        served.shutdown()


def published(url: str, content: bytes = b"weights") -> WeightsFile:
    return WeightsFile("published", url, sha256(content).hexdigest())


def test_a_download_is_promised_by_its_digest_and_made_when_needed(
    server: str, no_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    file = published(server)
    assert file.find(None) is None
    assert file.expect("inception") == file.digest == sha256(b"weights").hexdigest()
    assert not no_weights.exists()
    assert file.download() == file.find(None) == no_weights / "published"
    assert digest_of(no_weights / "published") == file.digest


def test_another_file_than_the_published_one_is_not_kept(
    server: str, no_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(UsageError, match="invalid hash value"):
        published(server, b"others").download()
    assert list(no_weights.iterdir()) == []
    assert not reachable(server + "-not")


def test_dinov2_is_torch_hubs_network_on_images_resized_as_by_edm2(no_weights: Path, tmp_path: Path) -> None:
    """A stand-in for the repository; the way to it, to its weights and what it is given are the real ones."""
    hub, torch_ = no_weights.parent, "import torch\n"
    (hub / "facebookresearch_dinov2_main").mkdir(parents=True)
    (hub / "facebookresearch_dinov2_main" / "hubconf.py").write_text(
        torch_ + "def dinov2_vitl14(pretrained=True):\n    assert not pretrained\n"
        "    return torch.nn.Sequential(torch.nn.AvgPool2d(112), torch.nn.Flatten(), torch.nn.Linear(12, 1024))\n"
    )
    network = nn.Linear(12, 1024)
    torch.save({f"2.{k}": v for k, v in network.state_dict().items()}, tmp_path / dinov2.WEIGHTS.name)
    found = extractor(context(tmp_path, IMAGES), "dinov2")
    pale = IMAGES // 2 + 64  # so that no resized pixel lies outside of a byte's range, where Pillow would cut it off
    features = found.extract(Chunk(0, None, pale))["dinov2"]
    resized = [Image.fromarray(image).resize((224, 224), BICUBIC) for image in pale.transpose(0, 2, 3, 1)]
    x = (np.stack([np.asarray(image) for image in resized]) / 255 - dinov2.MEAN) / dinov2.STD
    pooled = x.reshape(2, 2, 112, 2, 112, 3).mean((2, 4)).transpose(0, 3, 1, 2).reshape(2, 12)
    expected = network(torch.from_numpy(pooled).float()).detach().numpy()
    np.testing.assert_allclose(features, expected, atol=2e-3)  # Pillow rounds to bytes
    assert found.family.startswith("dinov2 vit-l/14 bicubic ")


class Stored(nn.Module):
    """What OpenAI's file holds, as far as torch-fidelity reads it."""

    def __init__(self, visual: nn.Module, width: int) -> None:
        super().__init__()
        self.visual = visual
        self.text_projection = nn.Parameter(torch.zeros(4, width))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.visual(x)
        return found


def clip_file(path: Path, width: int) -> Path:
    """A CLIP of one narrow layer and four patches, with random weights."""
    torch.manual_seed(0)
    visual = CLIPVisual(width, 28, 1, 64, 14).visual
    with torch.no_grad():
        visual.conv1.weight.normal_(0, 0.05)
    torch.jit.trace(Stored(visual, width), torch.zeros(1, 3, 28, 28)).save(str(path))
    return path


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_clip_is_torch_fidelitys_network_on_images_resized_as_by_cmmd(tmp_path: Path) -> None:
    path = clip_file(tmp_path / clip.WEIGHTS.name, 768)
    found = extractor(context(tmp_path, IMAGES), "clip")
    theirs = FeatureExtractorCLIP(clip.NAME, ["clip"], feature_extractor_weights_path=str(path))
    resized = np.stack([clip.square(image, 28) for image in IMAGES.transpose(0, 2, 3, 1)]).transpose(0, 3, 1, 2)
    (expected,) = theirs(torch.from_numpy(resized.copy()))  # which has nothing left to resize
    np.testing.assert_allclose(found.extract(Chunk(0, None, IMAGES))["clip"], expected, rtol=1e-4, atol=1e-5)
    assert abs(expected[0] - expected[1]).max() > 0.1
    assert clip.WEIGHTS.url == MODEL_URLS[clip.NAME]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_another_clip_is_refused(tmp_path: Path) -> None:
    clip_file(tmp_path / clip.WEIGHTS.name, 512)
    with pytest.raises(UsageError, match=r"gives features of shape \(512,\), not 768"):
        extractor(context(tmp_path, IMAGES), "clip")


def test_the_middle_square_is_what_clip_sees() -> None:
    image = np.zeros((4, 10, 3), np.uint8)
    image[:, 3:7] = 200
    assert (clip.square(image, 8) == 200).all()


OFFLINE = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}


def test_a_sweep_offline_without_weights_is_one_line_and_writes_nothing(tmp_path: Path, forks: Nest) -> None:
    env = OFFLINE | {"TORCH_HOME": str(tmp_path / "torch")}
    done = forks.answer("sweep", "--metrics", "fid", cwd=tmp_path, env=env)
    assert done.returncode == 2
    assert done.stderr.startswith(f"fewstep: features 'inception' need {WEIGHTS.name}, which is not here")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_takes_fid_by_the_weights_it_is_given(inceptions: Path, tmp_path: Path, forks: Nest) -> None:
    """Four digits against four others, by a random network: the number means nothing, the rest of the record does."""
    save(pictures(0, 4, (1, 8, 8)), tmp_path / "real")
    (tmp_path / "sweep.yaml").write_text(
        "solvers: [ddim]\nnfe: [5]\nsamples: 4\nlatency: false\nmetrics: [fid]\nreference: real\n"
        f"inception_weights: {inceptions}\n"
    )
    done = forks.answer("sweep", "sweep.yaml", "--out", "run", cwd=tmp_path, env=OFFLINE)
    assert done.returncode == 0, done.stderr
    assert "4 samples for 2048 features" in " ".join(done.stderr.split())
    [record] = Store(tmp_path / "run").records()
    [fid] = record["metrics"]
    digest = sha256((inceptions / WEIGHTS.name).read_bytes()).hexdigest()
    assert fid["family"] == f"inception torch-fidelity {digest[:12]} (not the published weights)"
    assert (fid["metric"], fid["n"], fid["reference"]["n"]) == ("fid", 4, 4)
    assert fid["value"] > 0 < fid["se"]


def test_ls_says_what_each_metric_lacks(inceptions: Path, no_weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    no_weights.mkdir(parents=True)
    (no_weights / WEIGHTS.name).symlink_to(inceptions / WEIGHTS.name)
    print_list("metrics", verbose=False)
    words = [line.split() for line in capsys.readouterr().out.splitlines()]
    said = {name: " ".join(lacks) for name, *lacks in words}
    assert list(said) == METRICS.names()
    assert said["fid"] == said["frechet_digits"] == said["trajectory"] == ""
    assert said["fid_legacy_pt"] == f"missing: {PYTORCH_FID.name} in {no_weights}"
    assert said["lpips"] == f"missing: weights-vgg16-lpips.pth and vgg16-397923af.pth in {no_weights}"
    print_list("metrics", verbose=True)
    about = {block.split("\n")[0]: block for block in re.split(r"\n(?=\w)", capsys.readouterr().out)}
    assert about["fid"].endswith("features: inception\n    there")
    assert f"features: clip\n    missing: {clip.WEIGHTS.name} in " in about["cmmd"]


def test_a_metric_that_cannot_be_imported_does_not_hide_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = {"broken": "bench.metrics.nowhere:Nothing", "frechet_pixels": "bench.metrics.frechet:FrechetPixels"}
    monkeypatch.setattr("bench.show.METRICS", replace(METRICS, builtin=broken))
    for verbose in (False, True):
        print_list("metrics", verbose)
        out = capsys.readouterr().out
        assert "cannot be used: ModuleNotFoundError" in out
        assert "\nfrechet_pixels\n" in out
