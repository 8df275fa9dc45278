"""EDM's and EDM2's networks give what the official code gave, and files that are not theirs are refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

import solvers
from bench.checkpoints.base import Guide, Task, quantise
from bench.checkpoints.edm.layers import inexact
from bench.checkpoints.edm.load import build, load
from bench.checkpoints.edm.precondition import Preconditioned
from bench.errors import UsageError
from bench.metrics.weights import digest_of
from solvers.registry import UnknownNameError
from tests.bench.edm_files import Persistent, write_edm_pickle
from tests.bench.recorded_networks import CASES, inputs, recorded, saved, tensors

HERE = Path("a.pkl")


def built(name: str) -> Preconditioned:
    return build(saved(name), HERE)[0]


def given(name: str, network: Preconditioned, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """x, sigma and y that the official network of this case was given."""
    a = CASES[name].arguments
    x, y = inputs((a["img_channels"], *[a["img_resolution"]] * 2), network.label_dim, seed=2)
    sigma = torch.tensor(CASES[name].sigmas)
    return (x * sigma[:, None, None, None]).to(dtype), sigma.to(dtype), y


def distance(out: Tensor, expected: Tensor) -> float:
    """The largest difference of any sample over that sample's largest value."""
    return float(((out - expected).abs().amax((1, 2, 3)) / expected.abs().amax((1, 2, 3))).max())


def written(folder: Path, name: str, **arguments: Any) -> Path:
    case = CASES[name]
    return write_edm_pickle(folder / f"{name}.pkl", case.class_name, {**case.arguments, **arguments}, tensors(name))


@pytest.mark.parametrize("name", CASES)
def test_official_outputs(name: str) -> None:
    network = built(name)
    x, sigma, y = given(name, network)
    out = network(x, sigma, y)
    assert out.dtype == torch.float32
    assert distance(out, recorded(name)[1]) < 3e-6
    x, sigma, y = given(name, network, torch.float64)
    out = network.double()(x, sigma, y)
    assert out.dtype == torch.float64
    assert distance(out, recorded(name)[1]) < 1e-5  # the official ones are taken in float32


@pytest.mark.parametrize("name", ["ve-ncsnpp", "edm-adm", "edm2-pixels"])
def test_no_class(name: str) -> None:
    network = built(name)
    x, sigma, y = given(name, network)
    none = torch.full_like(y, network.label_dim)
    assert torch.equal(network(x, sigma), network(x, sigma, none))
    assert distance(network(x, sigma, y)[:2], network(x, sigma)[:2]) > 1e-4  # the last of y is no class


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["ve-ncsnpp", "iddpm-adm", "edm2-pixels"])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    network, cast = built(name), built(name).to(dtype)
    assert {p.dtype for p in cast.parameters()} == {dtype}
    exact = [k for k, v in network.state_dict().items() if v.dtype == torch.int32]
    assert exact
    assert all(torch.equal(network.state_dict()[k], cast.state_dict()[k]) for k in exact)
    x, sigma, y = given(name, network)
    out = cast(x, sigma, y)
    assert out.dtype == torch.float32
    assert 0 < distance(out, network(x, sigma, y)) < (0.02 if dtype == torch.float16 else 0.15)


@pytest.mark.parametrize("name", ["ve-ncsnpp", "iddpm-adm", "edm2-pixels"])
def test_derivative_along_a_direction(name: str) -> None:
    network = built(name).double()
    x, sigma, y = given(name, network, torch.float64)
    with sdpa_kernel(SDPBackend.MATH):  # the only kernel of attention that has a forward derivative
        along = jvp(lambda x: network(x, sigma, y), (x,), (x,))[1]
    h = 1e-5
    slope = (network(x * (1 + h), sigma, y) - network(x * (1 - h), sigma, y)) / (2 * h)
    assert distance(along, slope) < 1e-7


def test_traced_in_one_piece() -> None:
    network = built("edm2-pixels")
    x, sigma, y = given("edm2-pixels", network)
    traced = torch.compile(network, backend="eager", fullgraph=True)
    assert torch.equal(traced(x, sigma, y), network(x, sigma, y))


def test_vp_knows_its_label_at_low_noise() -> None:
    network = built("vp-ddpmpp")
    t = torch.logspace(-3, 0, 50, dtype=torch.float64)
    sigma = (0.5 * 19.9 * t**2 + 0.1 * t).expm1().sqrt()
    for dtype, within in ((torch.float64, 1e-9), (torch.float32, 3e-4)):  # of 999; float32's log(1 + s^2) is 5e-3 off
        assert torch.allclose(network.scalings(sigma.to(dtype))[3].double(), 999 * t, rtol=0, atol=within)


def test_iddpm_is_told_the_nearest_of_its_levels() -> None:
    network = built("iddpm-adm")
    u = inexact(network.u, torch.float64)
    between = u[40] * 0.6 + u[41] * 0.4
    told = network.scalings(torch.stack([u[0], u[40], between, u[99]]).reshape(-1, 1, 1, 1))[3].flatten()
    assert told.tolist() == [99, 59, 59, 0]
    assert network.levels == (float(u[99]), 81.0)


def test_levels() -> None:
    assert built("vp-ddpmpp").levels == pytest.approx((0.010486, 152.167), rel=1e-5)
    assert built("ve-ncsnpp").levels == (0.02, 100.0)
    assert built("edm-adm").levels == (0.002, 80.0)
    narrow = replace(saved("edm-adm"), arguments={**CASES["edm-adm"].arguments, "sigma_min": 0.01, "sigma_max": 50})
    assert build(narrow, HERE)[0].levels == (0.01, 50.0)


def test_a_checkpoint_of_a_file(tmp_path: Path) -> None:
    path = written(tmp_path, "edm-adm")
    found = load(path, {"resolution": 8, "classes": 1000}, "mine")
    assert (found.name, found.digest, found.predicts) == ("mine", digest_of(path), "data")
    assert (found.shape, found.image_shape, found.schedule) == ((3, 8, 8), (3, 8, 8), solvers.EDM())
    assert len(found.classes) == 1000
    assert sum(found.classes) == pytest.approx(1)
    assert found.knows_no_class  # it was made with label_dropout
    x, sigma, y = given("edm-adm", found.network)
    assert torch.equal(found.network(x, sigma, y), built("edm-adm")(x, sigma, y))
    assert not any(p.requires_grad for p in found.network.parameters())


def test_it_is_sampled(tmp_path: Path) -> None:
    checkpoint = load(written(tmp_path, "edm-ddpmpp"), {}, "mine")
    cpu, task = torch.device("cpu"), Task()
    denoiser = checkpoint.denoiser(task, cpu, torch.float32)
    plan = solvers.plan("heun", checkpoint.schedule, nfe=5)
    x_T = checkpoint.latents(0, 0, 4, plan.times[0]).float()
    x = solvers.sample(plan, denoiser, x_T, cond=checkpoint.conditions(task, 0, 0, 4, cpu))
    assert denoiser.calls == 5
    assert x.isfinite().all()
    with pytest.raises(UsageError, match="was not trained without its classes"):
        checkpoint.check(Task(Guide(2.0)))


def test_edm2_in_half_precision_on_disk(tmp_path: Path) -> None:
    case = CASES["edm2-pixels"]
    encoder = Persistent("StandardRGBEncoder", {})
    path = write_edm_pickle(
        tmp_path / "a.pkl", case.class_name, case.arguments, tensors("edm2-pixels"), encoder, half=True
    )
    network = load(path, {}, "a").network
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    x, sigma, y = given("edm2-pixels", network)
    assert 1e-6 < distance(network(x, sigma, y), recorded("edm2-pixels")[1]) < 0.02


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny autoencoder of four channels that halves the resolution."""
    folder = tmp_path_factory.mktemp("vae")
    ends = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, **ends).save_pretrained(folder)
    return folder


def test_edm2_latents_become_its_bytes(tmp_path: Path, vae: Path) -> None:
    path = written(tmp_path, "edm2-latents")
    found = load(path, {"vae": str(vae)}, "a")
    assert (found.shape, found.image_shape) == ((4, 8, 8), (3, 16, 16))
    assert found.digest != digest_of(path)
    latents = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert found.decode is not None
    got = quantise(found.decode(latents))

    mean, std = np.float32([5.81, 3.25, 0.12, -2.15]), np.float32([4.17, 4.62, 3.71, 3.28])
    scale = np.float32(0.5) / std  # EDM2's own arithmetic, in which images are in [0, 1] and bytes are cut off
    raw = (latents.numpy() + (mean * scale)[:, None, None]) / scale[:, None, None]
    images = AutoencoderKL.from_pretrained(vae).decode(torch.from_numpy(raw)).sample.detach()
    expected = images.clamp(0, 1).mul(255).to(torch.uint8).numpy()
    assert (got == expected).mean() > 0.999
    assert (abs(got.astype(int) - expected)).max() <= 1  # where 255 d is a whole number but for rounding
    assert len(np.unique(got)) > 20
    found.apart["decode"](torch.device("cpu"), 2)()


CHANGED = [  # arguments that differ from the case's, and what the refusal says
    ("ve-ncsnpp", {"encoder_type": "skip"}, "encoder_type = 'skip'"),
    ("ve-ncsnpp", {"num_blocks": 10**9}, "num_blocks"),
    ("ve-ncsnpp", {"model_channels": 2**40}, "model_channels"),
    ("ve-ncsnpp", {"model_channels": 2**16}, "its network's is"),
    ("ve-ncsnpp", {"sigma_min": -1}, "sigma_min"),
    ("ve-ncsnpp", {"colour": "blue"}, "colour"),
    ("ve-ncsnpp", {"img_resolution": 18}, "a resolution of 18 cannot be halved"),
    ("ve-ncsnpp", {"label_dim": 11}, "map_label.weight"),
    ("ve-ncsnpp", {"num_blocks": 2}, "lacks a tensor of its network"),
    ("edm-adm", {"model_type": "UNet"}, "a EDMPrecond of a 'UNet'"),
    ("edm-adm", {"model_type": "Transformer"}, "'Transformer'"),
    ("edm-adm", {"model_channels": 72}, "144.* must be divisible by num_groups"),
]


@pytest.mark.parametrize(("name", "changed", "says"), CHANGED)
def test_arguments_that_are_refused(name: str, changed: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says) as error:
        build(replace(saved(name), arguments={**CASES[name].arguments, **changed}), HERE)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("a.pkl")


def test_tensors_that_are_refused() -> None:
    held, name = tensors("edm-adm"), "model.map_layer0.weight"
    for others, says in (
        ({k: v for k, v in held.items() if k != name}, f"lacks a tensor of its network: {name}"),
        ({**held, "model.extra": torch.zeros(2)}, "that its network has not: model.extra"),
        ({**held, name: torch.zeros(3, 3)}, r"is \(3, 3\), and its network's is \(256, 64\)"),
        ({**held, name: held[name] * torch.nan}, f"{name} is not finite"),
    ):
        with pytest.raises(UsageError, match=says):
            build(replace(saved("edm-adm"), tensors=others), HERE)
    with pytest.raises(UsageError, match=r"holds a EDMLoss, not one of VPPrecond, VEPrecond"):
        build(replace(saved("edm-adm"), class_name="EDMLoss"), HERE)


def test_options_that_are_refused(tmp_path: Path, vae: Path) -> None:
    pixels, latents = written(tmp_path, "edm-adm"), written(tmp_path, "edm2-latents")
    for path, options, says in (
        (pixels, {"resolution": 64}, "has resolution 8, not 64"),
        (pixels, {"classes": 10}, "has classes 1000, not 10"),
        (pixels, {"vae": str(vae)}, "takes no vae"),
        (latents, {}, "vae=FOLDER"),
        (latents, {"vae": str(tmp_path / "nothing")}, "lacks its vae"),
    ):
        with pytest.raises(UsageError, match=says) as error:
            load(path, options, "mine")
        assert "\n" not in str(error.value)
    with pytest.raises(UnknownNameError, match="did you mean 'resolution'"):
        load(pixels, {"resolutoin": 8}, "mine")
