"""Which files of a pipeline are read, what they are refused for, in one line, and the digest of what they hold."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from bench.checkpoints import Checkpoint
from bench.checkpoints.pipelines import load
from bench.errors import UsageError
from solvers import UnknownNameError
from tests.bench import tiny_pipelines as tiny

Folders = Callable[..., Path]
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def ddpm(folders: Folders, tmp_path: Path) -> Path:
    """A DDPMPipeline of one's own, to be broken."""
    return shutil.copytree(folders(tiny.ddpm), tmp_path / "ddpm")


class Bomb:
    """Pickled, it makes a file where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def output(checkpoint: Checkpoint) -> torch.Tensor:
    x = torch.randn(1, *checkpoint.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return checkpoint.network(x, torch.tensor([0.5]))


def test_pickles_are_left_alone_where_there_are_safetensors(ddpm: Path, tmp_path: Path) -> None:
    before = load(ddpm, {}, "a")
    (ddpm / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "marker")))
    after = load(ddpm, {}, "b")
    assert (after.digest, after.name) == (before.digest, "b")
    assert torch.equal(output(before), output(after))
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("options", [{"safe_serialization": False}, {"max_shard_size": "2MB"}, {"variant": "fp16"}])
def test_other_forms_of_the_same_weights(options: dict[str, Any], ddpm: Path) -> None:
    before = load(ddpm, {}, "a")
    model = diffusers.UNet2DModel.from_pretrained(ddpm / "unet")
    shutil.rmtree(ddpm / "unet")
    model.save_pretrained(ddpm / "unet", **options)
    assert not (ddpm / "unet" / WEIGHTS).exists()
    asked = {k: v for k, v in options.items() if k == "variant"}
    if asked:
        with pytest.raises(UsageError, match=r"holds no weights that are read.*: give variant=fp16"):
            load(ddpm, {}, "b")
    after = load(ddpm, asked, "b")
    torch.testing.assert_close(output(before), output(after))
    assert (after.digest == before.digest) == bool(asked)  # of the files' bytes


def test_weights_of_half_precision_are_computed_with_in_float32(ddpm: Path) -> None:
    diffusers.UNet2DModel.from_pretrained(ddpm / "unet").half().save_pretrained(ddpm / "unet")
    assert {p.dtype for p in load(ddpm, {}, "a").network.parameters()} == {torch.float32}


def test_a_pickle_that_would_run_something_is_refused_by_name(ddpm: Path, tmp_path: Path) -> None:
    (ddpm / "unet" / WEIGHTS).unlink()
    torch.save({"weight": Bomb(tmp_path / "marker")}, ddpm / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(UsageError, match=r"diffusion_pytorch_model.bin is refused: it asks to import \w+.system"):
        load(ddpm, {}, "a")
    assert not (tmp_path / "marker").exists()


def drop(name: str) -> Callable[[Path], None]:
    return lambda path: shutil.rmtree(path / name) if (path / name).is_dir() else (path / name).unlink()


def write(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda path: (path / name).write_bytes(data) and None


def put(name: str, **values: Any) -> Callable[[Path], None]:
    return lambda path: tiny.change(path / name, **values)


def truncate(path: Path) -> None:
    os.truncate(path / "unet" / WEIGHTS, 1_000_000)


def shards(*names: str, there: bool = True) -> Callable[[Path], None]:
    """An index of shards in the place of the weights."""

    def spoil(path: Path) -> None:
        (path / "unet" / WEIGHTS).unlink()
        index = {"weight_map": {f"weight{i}": name for i, name in enumerate(names)}} if there else {"metadata": {}}
        (path / "unet" / f"{WEIGHTS}.index.json").write_text(json.dumps(index))

    return spoil


WRONG: list[tuple[Callable[[Path], None], dict[str, Any], str]] = [
    (drop("model_index.json"), {}, "is no pipeline: it has neither a model_index.json nor a model's config.json"),
    (write("model_index.json", b"{]"), {}, "model_index.json is no JSON: "),
    (write("model_index.json", b"[1]"), {}, "model_index.json holds a list, not a JSON object"),
    (put("model_index.json", _class_name=None), {}, "is no pipeline"),
    (
        put("model_index.json", _class_name="KandinskyPipeline"),
        {},
        "is a KandinskyPipeline: what runs here is DDPMPipe",
    ),
    (put("model_index.json", _class_name=["pipeline", "Mine"]), {}, "is no pipeline"),
    (put("model_index.json", unet=None), {}, "model_index.json names no unet: a DDPMPipeline has one"),
    (put("model_index.json", unet=["mine", "UNet"]), {}, "its unet is a UNet, and what runs here is UNet2DModel"),
    (drop("unet"), {}, "lacks its unet: there is no "),
    (drop("scheduler"), {}, "lacks its scheduler: there is no "),
    (drop(f"unet/{WEIGHTS}"), {}, "holds no weights that are read, *.safetensors or *.bin"),
    (truncate, {}, f"{WEIGHTS} is no whole safetensors file: "),
    (
        write(f"unet/{WEIGHTS}", b"version https://git-lfs.github.com/spec/v1\noid"),
        {},
        "is a Git LFS pointer, not the w",
    ),
    (
        put("unet/config.json", add_attention=False),
        {},
        "its weights are not its config's: 10 unexpected, such as mid_bl",
    ),
    (put("unet/config.json", num_class_embeds=5), {}, "config's: 1 missing, such as class_embedding.weight"),
    (put("unet/config.json", layers_per_block=1), {}, "expected shape torch.Size([64, 96, 3, 3]), but got torch.Size"),
    (put("unet/config.json", down_block_types=["Mine"]), {}, "is no UNet2DModel that can be loaded: "),
    (put("unet/config.json", sample_size=None), {}, "says no sample_size, and None is none"),
    (put("unet/config.json", class_embed_type="timestep"), {}, "class_embed_type='timestep' is no table of classes"),
    (
        put("scheduler/scheduler_config.json", _class_name="FlowMatchEulerDiscreteScheduler"),
        {},
        "does not run under a F",
    ),
    (put("scheduler/scheduler_config.json", prediction_type="score"), {}, "prediction type 'score' is none of epsilon"),
    (shards(), {}, "is no index of weights: it has no weight_map"),
    (shards(there=False), {}, "is no index of weights: it has no weight_map"),
    (shards("a-00001-of-00002.safetensors"), {}, "names a-00001-of-00002.safetensors, which is not beside it"),
    (shards("../scheduler/scheduler_config.json"), {}, "config.json, which is not beside it"),
    (lambda path: None, {"resolution": 32}, "resolution=32, and its images are of 16 x 16 pixels"),
    (lambda path: None, {"classes": 10}, "classes=10, and its embeddings are 0"),
    (lambda path: None, {"prediction": "score"}, "prediction type 'score' is none of epsilon, sample"),
    (lambda path: None, {"variant": "fp8"}, "holds no file of the variant 'fp8'"),
    (lambda path: None, {"betas": "linear"}, "betas='linear' is given, and "),
    (lambda path: None, {"resolution": "large"}, "resolution='large' is not of type int"),
    (lambda path: None, {"resolution": True}, "resolution=True is not of type int"),
    (lambda path: None, {"resolutoin": 16}, "did you mean 'resolution'?"),
]


@pytest.mark.parametrize(("spoil", "options", "why"), WRONG, ids=[why[:40] for _, _, why in WRONG])
def test_what_is_wrong_is_said_in_one_line(
    spoil: Callable[[Path], None], options: dict[str, Any], why: str, ddpm: Path
) -> None:
    spoil(ddpm)
    with pytest.raises((UsageError, UnknownNameError)) as caught:
        load(ddpm, options, "tiny")
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [tiny.dit, tiny.ldm])
def test_latents_have_their_own_sizes(make: tiny.Make, folders: Folders) -> None:
    wrong = {"resolution": 33} if make is tiny.ldm else {"classes": 10}
    with pytest.raises(UsageError, match=r"is no multiple of 4 pixels|classes=10, and it has 1000"):
        load(folders(make), wrong, "tiny")
    if make is tiny.ldm:
        larger = load(folders(make), {"resolution": 32}, "tiny")
        assert (larger.shape, larger.image_shape) == ((3, 16, 16), (3, 32, 32))
        assert larger.decode(torch.zeros(2, *larger.shape)).shape == (2, *larger.image_shape)
        assert larger.digest != load(folders(make), {}, "tiny").digest
    else:
        with pytest.raises(UsageError, match="resolution=64, and it has 32"):
            load(folders(make), {"resolution": 64}, "tiny")


def test_a_learned_variance_is_left_out(folders: Folders) -> None:
    path = folders(tiny.ddpm, out_channels=6)
    checkpoint, model = load(path, {}, "tiny"), diffusers.UNet2DModel.from_pretrained(path / "unet")
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = model(x, 499).sample[:, :3]
        torch.testing.assert_close(checkpoint.network(x, torch.full((2,), 0.5)), expected)


def test_a_network_between_other_channels_is_refused(folders: Folders) -> None:
    with pytest.raises(UsageError, match="from 6 to 3 channels does not run under a DDPMScheduler"):
        load(folders(tiny.ddpm, in_channels=6), {}, "tiny")


def test_a_missing_autoencoder(folders: Folders, tmp_path: Path) -> None:
    path = shutil.copytree(folders(tiny.dit), tmp_path / "dit")
    shutil.rmtree(path / "vae")
    with pytest.raises(UsageError, match="lacks its vae"):
        load(path, {}, "tiny")


def test_a_model_alone_must_be_told_its_betas(folders: Folders) -> None:
    with pytest.raises(UsageError, match=r"has no scheduler_config.json: give betas=linear, scaled_linear"):
        load(folders(tiny.alone), {}, "tiny")


def test_the_last_embedding_may_stand_for_no_class(folders: Folders) -> None:
    path = folders(tiny.ddpm, num_class_embeds=5)
    all_classes, with_none = load(path, {}, "a"), load(path, {"classes": 4}, "b")
    assert (len(all_classes.classes), all_classes.knows_no_class) == (5, False)
    assert (len(with_none.classes), with_none.knows_no_class) == (4, True)
    assert all_classes.digest != with_none.digest  # other labels are drawn
    x, t = torch.randn(2, 3, 16, 16), torch.full((2,), 0.5)
    a, b = (with_none.network(x, t, y=torch.tensor([k, k])) for k in (0, 4))
    assert not torch.allclose(a, b)


def test_the_digest_is_of_contents_and_of_what_decides(ddpm: Path, folders: Folders) -> None:
    original = load(folders(tiny.ddpm), {}, "a").digest
    tiny.change(ddpm / "unet" / "config.json", _name_or_path="elsewhere", _diffusers_version="0.1")
    assert load(ddpm, {}, "b").digest == load(folders(tiny.flat), {}, "c").digest == original
    assert load(ddpm, {"prediction": "epsilon"}, "a").digest == original
    assert load(ddpm, {"prediction": "v_prediction"}, "a").digest != original
    tiny.change(ddpm / "scheduler" / "scheduler_config.json", beta_end=0.03)
    other = load(ddpm, {}, "a").digest
    assert other != original
    state = load_file(ddpm / "unet" / WEIGHTS)
    state["conv_out.bias"][0] += 1
    model = diffusers.UNet2DModel.from_pretrained(ddpm / "unet")
    model.load_state_dict(state)
    model.save_pretrained(ddpm / "unet")
    assert load(ddpm, {}, "a").digest not in (other, original)


def test_the_card_says_what_it_is(folders: Folders, tmp_path: Path) -> None:
    card = load(folders(tiny.consistency), {}, "a").card
    assert card["pipeline"] == "ConsistencyModelPipeline"
    assert card["scheduler"]["_class_name"] == "CMStochasticIterativeScheduler"
    model = diffusers.UNet2DModel.from_pretrained(folders(tiny.consistency) / "unet")
    assert card["parameters"] == sum(p.numel() for p in model.parameters())
    commit = shutil.copytree(folders(tiny.consistency), tmp_path / "snapshots" / "0123abc")
    assert load(commit, {}, "a").card["revision"] == "0123abc"


@pytest.mark.parametrize("make", [tiny.ddpm, tiny.consistency, tiny.dit])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-5), (torch.float16, 0.02), (torch.bfloat16, 0.1)])
def test_any_precision_takes_and_gives_states_in_their_own(
    make: tiny.Make, dtype: torch.dtype, error: float, folders: Folders
) -> None:
    checkpoint = load(folders(make), {}, "tiny")
    x, t = torch.randn(2, *checkpoint.shape), torch.full((2,), checkpoint.schedule.t_max / 2)
    cond = {"y": torch.tensor([1, 2])} if checkpoint.classes else {}
    exact = checkpoint.network(x, t, **cond)
    network = checkpoint.network.to(dtype)
    out = network(x, t, **cond)
    assert out.dtype == torch.float32
    assert 0 < (out - exact).norm() / exact.norm() < error
    assert network(x.double(), t.double(), **cond).dtype == torch.float64


def test_a_consistency_model_gives_back_its_input_at_the_least_noise(folders: Folders) -> None:
    checkpoint = load(folders(tiny.consistency), {}, "tiny")
    x, t = torch.randn(2, *checkpoint.shape), torch.full((2,), 0.002, dtype=torch.float64)
    assert torch.equal(checkpoint.network.half()(x, t, y=torch.tensor([1, 2])), x)
