"""State dicts of guided-diffusion give what its code gave, and files that are not of its kind are refused."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

import solvers
from bench.checkpoints.adm import PUBLISHED, load
from bench.checkpoints.base import Checkpoint, Guide, Task
from bench.errors import UsageError
from tests.bench.recorded_networks import ADM_CASES, ADM_LABELS, inputs, recorded, tensors

LEGACY = {"resolution": 8, "schedule": "cosine", "heads": 4, "new_attention_order": False}
NEW = {"resolution": 16, "schedule": "linear", "head_channels": 32, "new_attention_order": True}
OPTIONS = {"adm-legacy": LEGACY, "adm-new": NEW}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each case's state dict, in a file."""
    found = {name: tmp_path_factory.mktemp("adm") / f"{name}.pt" for name in ADM_CASES}
    for name, path in found.items():
        torch.save(tensors(name), path)
    return found


def called(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> Tensor:
    """The network's output for what the official one was given."""
    x, y = inputs(checkpoint.shape, 1000, seed=2)
    t = (torch.tensor(ADM_LABELS, dtype=dtype) + 1) / 1000
    cond = {"y": y.clip(0, 999)} if checkpoint.classes else {}
    out: Tensor = checkpoint.network(x.to(dtype), t, **cond)
    return out


def distance(out: Tensor, expected: Tensor) -> float:
    return float((out - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", ADM_CASES)
def test_official_outputs(files: dict[str, Path], name: str) -> None:
    checkpoint = load(files[name], OPTIONS[name], "mine")
    expected = recorded(name)[1][:, :3]  # the other three are a learned variance's
    assert distance(called(checkpoint), expected) < 3e-6
    checkpoint.network.double()
    assert distance(called(checkpoint, torch.float64), expected) < 1e-5


def test_a_checkpoint_of_a_file(files: dict[str, Path]) -> None:
    path = files["adm-legacy"]
    found = load(path, {**LEGACY, "classes": 1000}, "mine")
    assert (found.name, found.predicts) == ("mine", "noise")
    assert (found.shape, len(found.classes)) == ((3, 8, 8), 1000)
    with pytest.raises(UsageError, match="was not trained without its classes"):
        found.check(Task(Guide(1.5)))
    other = load(files["adm-new"], NEW, "mine")
    assert (other.shape, other.classes) == ((3, 16, 16), ())
    assert other.schedule == solvers.VPDiscrete.linear()


def test_cosine_betas(files: dict[str, Path]) -> None:
    schedule = load(files["adm-legacy"], LEGACY, "mine").schedule
    assert isinstance(schedule, solvers.VPDiscrete)
    expected = DDIMScheduler(beta_schedule="squaredcos_cap_v2").betas.double()  # which guided-diffusion's are, capped
    np.testing.assert_allclose(schedule.betas, expected, rtol=1e-6)
    assert schedule.betas[-1] == 0.999
    assert schedule.betas[0] == pytest.approx(1 - math.cos(0.009 / 1.008 * math.pi / 2) ** 2
                                              / math.cos(0.008 / 1.008 * math.pi / 2) ** 2, rel=1e-9)  # fmt: skip


def test_heads_and_their_order_matter(files: dict[str, Path]) -> None:
    expected = recorded("adm-legacy")[1][:, :3]
    for wrong in ({"heads": 2}, {"new_attention_order": True}):
        assert distance(called(load(files["adm-legacy"], {**LEGACY, **wrong}, "mine")), expected) > 1e-3
    same = {k: v for k, v in LEGACY.items() if k != "heads"} | {"head_channels": 16}  # only level 2, of 64, attends
    assert distance(called(load(files["adm-legacy"], same, "mine")), expected) < 3e-6


def test_the_digest_knows_what_the_file_does_not_say(files: dict[str, Path], tmp_path: Path) -> None:
    path = files["adm-legacy"]
    digest = load(path, LEGACY, "mine").digest
    moved = tmp_path / "elsewhere.pt"
    moved.write_bytes(path.read_bytes())
    assert load(moved, {**LEGACY, "classes": 1000}, "yours").digest == digest
    others = ({"heads": 2}, {"new_attention_order": True}, {"schedule": "linear"})
    assert len({digest, *(load(path, {**LEGACY, **other}, "mine").digest for other in others)}) == 4
    assert load(files["adm-new"], NEW, "mine").digest != digest


def test_published_files_need_no_options(files: dict[str, Path], tmp_path: Path) -> None:
    assert {name for name, known in PUBLISHED.items() if known.get("schedule") == "cosine"} == {"64x64_diffusion"}
    path = tmp_path / "256x256_diffusion_uncond.pt"
    path.write_bytes(files["adm-new"].read_bytes())
    found = load(path, {"resolution": 16}, "mine")  # of another size, or a thousand times larger than a test may be
    given = {"resolution": 16, "schedule": "linear", "head_channels": 64, "new_attention_order": False}
    assert torch.equal(called(found), called(load(files["adm-new"], given, "mine")))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(files: dict[str, Path], dtype: torch.dtype) -> None:
    checkpoint = load(files["adm-legacy"], LEGACY, "mine")
    expected = called(checkpoint)
    checkpoint.network.to(dtype)
    out = called(checkpoint)
    assert out.dtype == torch.float32
    assert 0 < distance(out, expected) < 0.05


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"resolution": None}, "does not say its resolution: give"),
    ({"heads": None, "schedule": None}, "does not say its schedule, heads or head_channels: give"),
    ({"head_channels": 16}, "heads and head_channels say the same"),
    ({"heads": 3}, "64 channels cannot be shared by 3 heads"),
    ({"heads": 0}, "heads=0 must be at least 1"),
    ({"schedule": "quadratic"}, "schedule=quadratic is none of linear, cosine"),
    ({"classes": 10}, "has classes 1000, not 10"),
    ({"resolution": 7}, "a resolution of 7 cannot be halved"),
    ({"resolution": "8"}, "resolution='8' is not of type int"),
]


@pytest.mark.parametrize(("changed", "says"), CHANGES)
def test_options_that_are_refused(files: dict[str, Path], changed: dict[str, Any], says: str) -> None:
    options = {k: v for k, v in {**LEGACY, **changed}.items() if v is not None}
    with pytest.raises(UsageError, match=says) as error:
        load(files["adm-legacy"], options, "mine")
    assert "\n" not in str(error.value)


def renamed(state: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {name.replace(old, new): w for name, w in state.items()}


def test_files_that_are_refused(tmp_path: Path) -> None:
    state = tensors("adm-legacy")
    wide = torch.zeros(32, 6, 3, 3)
    for held, says in (
        ({"model": state}, "is no state dict"),
        ({k: v for k, v in state.items() if not k.startswith("output")}, "no diffusion network of guided-diffusion"),
        (renamed(state, "input_blocks.2.0.in_layers.2", "input_blocks.2.0.op"), "resblock_updown=False"),
        ({**state, "input_blocks.0.0.weight": wide, "out.2.weight": state["out.2.weight"][:3]}, "super-resolution"),
        ({**state, "extra.weight": wide}, "a tensor that its network has not: extra.weight"),
        ({k: v for k, v in state.items() if "middle_block.0.in_layers.0.bias" not in k}, "lacks .*in0.norm0.bias"),
        (renamed(state, "input_blocks.3", "input_blocks.9"), "4 blocks fill no 2 levels"),
        (renamed(state, "output_blocks.1.2.", "output_blocks.1.7."), r"its network's is \(64,\)"),
        ({k: w[: len(w) // 2] if "emb_layers" in k else w for k, w in state.items()}, "use_scale_shift_norm=False"),
    ):
        path = tmp_path / "a.pt"
        torch.save(held, path)
        with pytest.raises(UsageError, match=says) as error:
            load(path, LEGACY, "mine")
        assert "\n" not in str(error.value)
