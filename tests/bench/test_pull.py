"""`fewstep pull` against real servers on this machine: what comes, what goes on, what is refused, what is kept."""

import json
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from bench.checkpoints.hub import found
from bench.checkpoints.lock import default_lock, read_lock
from bench.checkpoints.manifest import entry, sources
from bench.checkpoints.pull import Pulled, pull
from bench.checkpoints.repository import complete, files_in, wanted
from bench.errors import UsageError
from tests.bench.servers import COMMIT, Hub, Site, serving
from tests.bench.test_cli import fewstep
from tests.chaos.nest import Nest

FEWSTEP = str(Path(sys.executable).parent / "fewstep")
OLD, NEW = (np.random.default_rng(seed).bytes(3_000_000) for seed in (0, 1))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A lab's server with one checkpoint, `mine`, in a manifest of its own."""
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    with serving(Site({"/mine.pkl": OLD})) as site:
        manifest(tmp_path, monkeypatch, f"url: {site.url}/mine.pkl")
        yield site


def manifest(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    path = folder / "lab.yaml"
    about = f"{{about: ours, loader: edm, resolution: 32, source: {{{source}, licence: ours}}}}"
    path.write_text(f"checkpoints:\n  mine: {about}\n")
    monkeypatch.setenv("FEWSTEP_MANIFEST", str(path))


def bring(lock: Path | None = None) -> Pulled:
    return pull(sources("mine")[0], lock)


def left(cache: Path) -> list[str]:
    """What lies beside the file."""
    return sorted(path.name for path in (cache / "checkpoints" / "mine").iterdir() if path.suffix != ".busy")


def test_what_is_pulled_is_found_whole_and_locked(site: Site, tmp_path: Path) -> None:
    assert entry("mine").source.find() is None
    pulled = bring()
    assert not pulled.before
    assert pulled.path.read_bytes() == OLD
    assert entry("mine").source.find() == pulled.path
    pin = read_lock(default_lock())["mine"]
    assert pin.source == f"{site.url}/mine.pkl"
    assert pin.files["mine.pkl"].model_dump() == {"sha256": sha256(OLD).hexdigest(), "bytes": len(OLD)}
    assert left(tmp_path / "cache") == ["mine.pkl"]


def test_what_is_here_is_verified_and_not_asked_for_again(site: Site) -> None:
    bring()
    asked, lock = len(site.asked), default_lock().read_text()
    assert bring().before
    assert len(site.asked) == asked
    assert default_lock().read_text() == lock


@pytest.mark.parametrize("cuts", [[1_000_000], [1_000_000, 5, 700_000], [2_999_999, 1]])
def test_a_connection_that_breaks_goes_on_where_it_was(cuts: list[int], site: Site) -> None:
    site.cuts = [*cuts]
    assert bring().path.read_bytes() == OLD
    assert len(site.asked) == len(cuts) + 1
    assert site.asked[-1][1] == f"bytes={sum(cuts) - len(cuts)}-"  # the last byte that came is asked for again


def test_a_server_that_keeps_breaking_off_leaves_a_part_for_the_next_pull(site: Site, tmp_path: Path) -> None:
    site.cuts = [100_000] * 5
    with pytest.raises(UsageError, match=r"the connection broke 5 times; 488 KiB are kept, and the same command"):
        bring()
    assert entry("mine").source.find() is None
    assert left(tmp_path / "cache") == ["mine.pkl.part", "mine.pkl.part.version"]
    assert bring().path.read_bytes() == OLD
    assert site.asked[-1][1] is not None


@pytest.mark.parametrize("marks", [True, False])
@pytest.mark.parametrize("size", [3_000_000, 200_000])
def test_a_file_that_changed_meanwhile_starts_anew(marks: bool, size: int, site: Site) -> None:
    site.cuts, site.marks = [100_000] * 5, marks
    with pytest.raises(UsageError, match="broke 5 times"):
        bring()
    site.files["/mine.pkl"] = NEW[:size]
    assert bring().path.read_bytes() == NEW[:size]


def test_a_server_without_ranges_sends_it_all_again(site: Site) -> None:
    site.ranges, site.cuts = False, [1_000_000, 2_000_000]
    assert bring().path.read_bytes() == OLD


def test_a_digest_that_is_not_the_lock_s_is_refused_naming_both(site: Site, tmp_path: Path) -> None:
    bring().path.unlink()
    site.files["/mine.pkl"], lock = NEW, default_lock().read_text()
    with pytest.raises(UsageError, match="changed: its SHA-256 is") as caught:
        bring()
    assert sha256(NEW).hexdigest()[:16] in str(caught.value)
    assert sha256(OLD).hexdigest()[:16] in str(caught.value)
    assert str(default_lock()) in str(caught.value)
    assert left(tmp_path / "cache") == []
    assert default_lock().read_text() == lock


def test_a_digest_that_is_not_the_manifest_s_is_refused(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest(tmp_path, monkeypatch, f"url: {site.url}/mine.pkl, sha256: {sha256(NEW).hexdigest()}")
    with pytest.raises(UsageError, match=f"the manifest says {sha256(NEW).hexdigest()[:16]}"):
        bring()
    assert not default_lock().exists()


def test_a_file_that_was_changed_on_disk_is_refused(site: Site) -> None:
    path = bring().path
    path.write_bytes(NEW)
    with pytest.raises(UsageError, match=r"mine\.pkl is not what it should be: .*delete it, and the same command"):
        bring()
    path.unlink()
    assert bring().path.read_bytes() == OLD


def test_a_team_s_lock_holds_on_another_machine(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    team = tmp_path / "repository" / "fewstep.lock"
    bring(team)
    assert json.loads(team.read_text()).keys() == {"mine"}
    assert read_lock(team) == read_lock(default_lock())
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "another"))
    site.files["/mine.pkl"] = NEW
    with pytest.raises(UsageError, match=f"{team} says {sha256(OLD).hexdigest()[:16]}"):
        bring(team)
    site.files["/mine.pkl"] = OLD
    assert bring(team).path.read_bytes() == OLD
    assert read_lock(team) == read_lock(default_lock())


def test_a_file_that_was_put_there_by_hand_is_locked_as_it_is(site: Site) -> None:
    home = sources("mine")[0].home
    home.parent.mkdir(parents=True)
    home.write_bytes(OLD)
    assert bring().before
    assert not site.asked
    assert read_lock(default_lock())["mine"].files["mine.pkl"].sha256 == sha256(OLD).hexdigest()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"status": 404}, "the server answers 404"),
        ({"status": 403}, "the server answers 403"),
        ({"status": 503}, "the server answers 503"),
        ({"claims": 2**60}, "are to come and .* free: make room, or set"),
    ],
)
def test_what_cannot_be_brought_is_one_line(change: dict[str, int], says: str, site: Site) -> None:
    for name, value in change.items():
        setattr(site, name, value)
    with pytest.raises(UsageError, match=says) as caught:
        bring()
    assert "\n" not in str(caught.value)
    assert entry("mine").source.find() is None
    assert not default_lock().exists()


def test_without_a_network_it_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    manifest(tmp_path, monkeypatch, "url: http://127.0.0.1:9/mine.pkl")
    assert fewstep(monkeypatch, "pull", "mine") == 2
    err = capsys.readouterr().err
    assert err.startswith("fewstep: no network: 127.0.0.1 does not answer (")
    assert err.count("\n") == 1
    assert not default_lock().exists()


def test_a_disk_that_fills_up_is_one_line_and_the_part_is_kept(site: Site, tmp_path: Path, forks: Nest) -> None:
    done = forks.answer("pull", "mine", cwd=tmp_path, files=[2000])
    assert done.returncode == 2
    assert "mine.pkl.part cannot be written: [Errno 27] File too large; what came is kept" in done.stderr
    assert "Traceback" not in done.stderr
    assert bring().path.read_bytes() == OLD
    assert site.asked[-1][1] is not None


@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGKILL])
def test_a_pull_that_is_killed_goes_on(blow: signal.Signals, site: Site, tmp_path: Path, forks: Nest) -> None:
    site.hold = threading.Event()
    part = tmp_path / "cache" / "checkpoints" / "mine" / "mine.pkl.part"
    process = forks.start("pull", "mine", folder=tmp_path)
    until(lambda: part.exists() and part.stat().st_size >= 1_000_000)
    with pytest.raises(UsageError, match="'mine' is being pulled by another process"):
        bring()
    process.send(blow)
    code = process.done()
    site.hold.set()
    assert "Traceback" not in process.said()
    assert code == (130 if blow == signal.SIGINT else -blow)
    site.hold, had = None, part.stat().st_size
    assert bring().path.read_bytes() == OLD
    assert site.asked[-1][1] == f"bytes={had - 1}-"


def until(true: object) -> None:
    for _ in range(2400):
        if true():  # type: ignore[operator]
            return
        time.sleep(0.05)
    raise AssertionError("it never came to be")


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize(("name", "says"), [("mien", "did you mean 'mine'?"), ("digits", "there is nothing to pull")])
def test_names_that_are_unknown_or_shipped_are_said_to_be(
    name: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fewstep(monkeypatch, "pull", name) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("text", ["[]", "{", '{"mine": 3}', '{"mine": {"source": "x"}}'])
def test_a_lock_that_is_none_is_refused(text: str, site: Site, tmp_path: Path) -> None:
    (tmp_path / "a.lock").write_text(text)
    with pytest.raises(UsageError, match=r"a\.lock is no lock file"):
        bring(tmp_path / "a.lock")
    assert not site.asked


PIPELINE = {
    "model_index.json": json.dumps({
        "_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "vae": ["diffusers", "AutoencoderKL"],
        "safety_checker": ["x", "Y"], "text_encoder_3": [None, None],
    }).encode(),
    "unet/config.json": b"{}", "unet/diffusion_pytorch_model.safetensors": OLD[:2000],
    "unet/diffusion_pytorch_model.fp16.safetensors": b"half", "unet/diffusion_pytorch_model.bin": b"pickle",
    "vae/config.json": b"{}", "vae/diffusion_pytorch_model.bin": OLD[:1000], "tokenizer/merges.txt": b"a b",
    "safety_checker/model.safetensors": b"no", "vae_1_0/diffusion_pytorch_model.safetensors": b"no",
    "v1-5.safetensors": b"no", "README.md": b"no", "text_encoder_3/model.safetensors": b"no",
}  # fmt: skip
WANTED = {
    "model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "vae/config.json",
    "vae/diffusion_pytorch_model.bin", "tokenizer/merges.txt",
}  # fmt: skip


def test_of_a_repository_only_what_its_pipeline_is_loaded_from_is_wanted() -> None:
    assert set(wanted(PIPELINE, json.loads(PIPELINE["model_index.json"]))) == WANTED
    shards = [f"transformer/diffusion_pytorch_model-0000{k}-of-00002.safetensors" for k in (1, 2)]
    index = "transformer/diffusion_pytorch_model.safetensors.index.json"
    rest = ["transformer/diffusion_pytorch_model.safetensors.index.fp16.json", "transformer/x.fp16-00001.safetensors"]
    assert wanted([*shards, index, *rest], {"transformer": ["diffusers", "X"]}) == sorted([*shards, index])
    flat = ["model_index.json", "config.json", "scheduler_config.json", "diffusion_pytorch_model.bin", "a.py"]
    assert wanted(flat, {"unet": ["diffusers", "UNet2DModel"]}) == sorted(flat[:4])


def test_a_model_without_all_its_weights_is_not_complete() -> None:
    assert complete(WANTED)
    assert not complete(WANTED - {"vae/diffusion_pytorch_model.bin"})
    assert not complete(["model_index.json"])
    flat = ["model_index.json", "config.json", "diffusion_pytorch_model.bin"]
    assert complete(flat)
    shards = [f"t/diffusion_pytorch_model-0000{k}-of-00002.safetensors" for k in (1, 2)]
    assert complete(["t/config.json", *shards])
    assert not complete(["t/config.json", *shards[:1]])


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """The hub on this machine with one repository, which the hub's client takes for the real one."""
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    with serving(Site({**PIPELINE}), Hub) as site:
        manifest(tmp_path, monkeypatch, "hub: owner/name")
        for name, value in {
            "ENDPOINT": site.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": site.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "HF_HUB_DISABLE_XET": True,
        }.items():
            monkeypatch.setattr(constants, name, value)
        yield site


def snapshot(folder: Path) -> Path:
    return folder / "hub" / "models--owner--name" / "snapshots" / COMMIT


def test_a_pipeline_comes_from_the_hub_and_is_then_verified_offline(
    hub: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert entry("mine").source.find() is None
    pulled = bring()
    assert (pulled.before, pulled.path) == (False, snapshot(tmp_path))
    assert set(files_in(pulled.path)) == WANTED
    pin = read_lock(default_lock())["mine"]
    assert (pin.source, pin.revision) == ("hub:owner/name", COMMIT)
    assert {name: file.sha256 for name, file in pin.files.items()} == {
        name: sha256(PIPELINE[name]).hexdigest() for name in WANTED
    }
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.asked)
    assert bring().before
    default_lock().unlink()
    assert bring().before  # what came by another way is locked as it is
    assert read_lock(default_lock())["mine"] == pin
    assert len(hub.asked) == asked


def test_a_pull_from_the_hub_takes_what_is_there_already(hub: Site, tmp_path: Path) -> None:
    large = "unet/diffusion_pytorch_model.safetensors"
    hub.breaks = {large: [1000]}
    bring()
    assert (snapshot(tmp_path) / large).read_bytes() == PIPELINE[large]
    (snapshot(tmp_path) / "vae" / "config.json").unlink()
    before = len(hub.asked)
    bring()
    assert not any(path.endswith(large) for path, _ in hub.asked[before:])
    assert set(files_in(snapshot(tmp_path))) == WANTED


def test_a_blob_that_is_not_what_the_hub_or_the_lock_says_is_refused(
    hub: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring()
    blob = (snapshot(tmp_path) / "unet" / "diffusion_pytorch_model.safetensors").resolve()
    blob.write_bytes(NEW[:2000])
    with pytest.raises(UsageError, match=rf"{blob} is not what it should be: .*fewstep\.lock says"):
        bring()
    default_lock().unlink()
    shutil.rmtree(tmp_path / "hub")
    hub.wrong = {"unet/diffusion_pytorch_model.safetensors": NEW[:2000]}
    with pytest.raises(UsageError, match=r"is not what it should be: .*the hub says"):
        bring()
    assert not default_lock().exists()


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("gated", "is gated: accept its terms at https://huggingface.co/owner/name, and set $HF_TOKEN"),
        ("not there", "is not there, or is private: then set $HF_TOKEN"),
        ("no revision", "has no revision main"),
        ("nothing", "has no pipeline in it"),
        ("offline", "cannot be brought: "),
        ("unreachable", "cannot be brought: "),
        ("full", "are to come and "),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    how: str, says: str, hub: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.refuses = how
    if how == "nothing":
        hub.files = {"README.md": b"no"}
    if how == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    if how == "unreachable":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    if how == "full":
        hub.sizes = {"unet/diffusion_pytorch_model.safetensors": 2**60}
    assert fewstep(monkeypatch, "pull", "mine") == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.startswith("fewstep: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "cache").exists()


def test_any_repository_of_the_hub_can_be_named(hub: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found("owner/name", {}) == snapshot(tmp_path)
    asked = len(hub.asked)
    assert found("owner/name", {"revision": COMMIT}) == snapshot(tmp_path)
    assert len(hub.asked) == asked
    with pytest.raises(UsageError, match="is not there, or is private"):
        found("owner/another", {})
    with pytest.raises(UsageError, match="hub:another is not of the form hub:owner/name"):
        found("another", {})
