"""A sweep over prompts: solvers and a published student on a text-to-image pipeline, end to end."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict

from bench.cell import run
from bench.checkpoints import Guide, Task, load
from bench.checkpoints.prompts import Prompts, read_prompts
from bench.errors import UsageError
from bench.measure.work import Bench
from bench.report import write_report
from bench.report.text import shown
from bench.runner import Job, prepare
from bench.spec import Sweep
from tests.bench.common import read_sweep
from tests.bench.pictures import pictures, save

TextPipeline = Callable[[str], Path]


@pytest.fixture(scope="module")
def lora(text_pipeline: TextPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of the tiny pipeline's UNet, saved as they are published."""
    folder = tmp_path_factory.mktemp("lora")
    unet = diffusers.UNet2DConditionModel.from_pretrained(text_pipeline("stable_diffusion") / "unet")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    layers = get_peft_model_state_dict(unet)
    diffusers.StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)
    return folder


def sweep(folder: Path, pipeline: Path, batch: int | None = None, **others: Any) -> Job:
    (folder / "prompts.txt").write_text("a red cat\n\n photo of a blue cat \nred photo\n")
    shape = load(str(pipeline)).image_shape
    if not (folder / "real").exists():
        save(pictures(0, 12, shape), folder / "real")
    fields = {
        "checkpoint": str(pipeline), "prompts": str(folder / "prompts.txt"), "solvers": ["ddim"], "nfe": [2],
        "samples": 5, "metrics": ["energy(features=pixels)"], "reference": str(folder / "real"), "latency": False,
    }  # fmt: skip
    return prepare(read_sweep(None, fields | others), folder / "run", "cpu", batch)


def test_solvers_and_a_student_share_prompts_and_noise(text_pipeline: TextPipeline, lora: Path, tmp_path: Path) -> None:
    student = f"lcm_lora_sdv1_5(path={str(lora)!r})"
    ways = {"guidance": [1, 7.5], "solvers": ["ddim", student], "nfe": [2, 10]}
    job = sweep(tmp_path, text_pipeline("stable_diffusion"), **ways)
    assert job.skipped == ["lcm_lora_sdv1_5 runs at 2, 3, 4, 5, 6, 7, 8 calls, which it was trained for"]
    job.open()
    assert job.run("test") == []
    found = {(r["cell"]["series"], r["cell"]["nfe"]): r for r in job.store.records()}
    assert found.keys() == {("ddim w=1", 2), ("ddim w=1", 10), ("ddim w=7.5", 2), ("ddim w=7.5", 10), (student, 2)}
    of_student = found[student, 2]["cell"]
    assert of_student["student"]
    assert of_student["guidance"] == 1
    assert of_student["digest"] != job.checkpoint.digest == found["ddim w=1", 2]["cell"]["digest"]
    assert [found[name, 2]["forwards_per_sample"] for name in ("ddim w=1", "ddim w=7.5", student)] == [2, 4, 2]
    assert {r["cell"]["prompts"]["n"] for r in found.values()} == {3}
    images = {key: job.store.sidecar(r["key"])["images"] for key, r in found.items()}
    assert not np.array_equal(images["ddim w=1", 2], images["ddim w=7.5", 2])
    [cell] = [cell for cell in job.cells if cell.student]
    _, alone = run(cell, job.subjects.of(cell), {}, torch.device("cpu"), 5)
    assert np.array_equal(alone["images"], images[student, 2])  # of its own network, whoever ran before it
    measured = Bench(job.sweep.checkpoint, job.cells, torch.device("cpu"), 1).samplers[cell.key]
    _, timed = run(cell, job.subjects.of(cell), {}, torch.device("cpu"), 5, network=measured.network)
    assert np.array_equal(timed["images"], images[student, 2])
    assert f"| {shown(student)} † |" in write_report(job.store).read_text()


def test_samples_follow_their_own_prompts_whatever_the_batch(text_pipeline: TextPipeline, tmp_path: Path) -> None:
    pictured = []
    for batch in (5, 2):
        (tmp_path / str(batch)).mkdir()
        job = sweep(tmp_path / str(batch), text_pipeline("stable_diffusion"), guidance=7.5, batch=batch)
        assert job.batch == batch
        job.open()
        assert job.run("test") == []
        pictured.append(job.store.sidecar(job.cells[0].key)["images"].astype(int))
    assert np.abs(pictured[0] - pictured[1]).max() <= 1  # of 255, where float32 sums another way
    assert np.abs(pictured[0] - np.roll(pictured[0], 1, 0)).max() > 5


def test_guidance_leads_away_from_the_negative_prompt(text_pipeline: TextPipeline) -> None:
    checkpoint, cpu = load(str(text_pipeline("stable_diffusion"))), torch.device("cpu")
    task = Task(Guide(3.0), prompts=Prompts("prompts.txt", ("red cat",), "blue"))
    x, cond = checkpoint.latents(0, 0, 1, 1.0).float(), checkpoint.conditions(task, 0, 0, 1, cpu)
    with torch.no_grad():
        out = checkpoint.denoiser(task, cpu, torch.float32).forward(x, 0.5, cond)
        red, blue = (
            checkpoint.network(x, torch.tensor([0.5]), **c) for c in (cond, checkpoint.text.encode(["blue"], cpu))
        )
    assert torch.allclose(out, blue + 3 * (red - blue), atol=1e-5)


def test_cfg_plus_plus_has_a_null_at_scale_1_too(text_pipeline: TextPipeline, tmp_path: Path) -> None:
    job = sweep(tmp_path, text_pipeline("stable_diffusion"), guidance=1, cfg_plus_plus=True, negative_prompt="blue")
    job.open()
    assert job.run("test") == []
    assert next(iter(job.store.records()))["forwards_per_sample"] == 4


@pytest.mark.parametrize("further", [{"guidance_interval": [0.1, 1.0]}, {"cfg_plus_plus": True}])
def test_a_scale_that_is_an_input_is_one_scale(
    text_pipeline: TextPipeline, tmp_path: Path, further: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(further))}: .* is told one scale of guidance, as an input"):
        sweep(tmp_path, text_pipeline("lcm"), guidance=7.0, **further)


def test_prompts_and_the_negative_one_belong_to_the_key(text_pipeline: TextPipeline, tmp_path: Path) -> None:
    pipeline = text_pipeline("stable_diffusion")
    plain = sweep(tmp_path, pipeline).cells[0].key
    assert sweep(tmp_path, pipeline).cells[0].key == plain
    assert sweep(tmp_path, pipeline, negative_prompt="blue").cells[0].key != plain
    (tmp_path / "others.txt").write_text("a dog\n")
    assert sweep(tmp_path, pipeline, prompts=str(tmp_path / "others.txt")).cells[0].key != plain


def test_prompts_are_lines_that_come_again(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("one\n\n  two \nthree")
    prompts = read_prompts(path, "dull")
    assert prompts.of(2, 3) == ["three", "one", "two"]
    assert prompts.to_dict() == {"file": "prompts.txt", "n": 3, "negative": "dull", "sha256": prompts.digest}
    for data, why in ((b" \n\n", "holds no line"), (b"\xff\xfe\x00", "cannot be read as text")):
        path.write_bytes(data)
        with pytest.raises(UsageError, match=why):
            read_prompts(path)


@pytest.mark.parametrize(
    ("others", "why"),
    [
        ({"prompts": None}, "is told what to make by prompts: name a file with one a line, --prompts FILE"),
        ({"solvers": ["lcm_lora_sdv1_5"]}, "'lcm_lora_sdv1_5' is not here: `fewstep pull lcm_lora_sdv1_5`"),
        ({"solvers": ["lcm_lora_sdv1_5(guidance=9)"]}, "the student accepts 1 to 2"),
        ({"solvers": ["lcm_lora_sdxl(path='.')"]}, "is a LoRA for a StableDiffusionXLPipeline, and"),
        ({"classes": [0]}, "classes: "),
    ],
)
def test_what_does_not_fit_is_refused(
    text_pipeline: TextPipeline, tmp_path: Path, others: dict[str, Any], why: str
) -> None:
    with pytest.raises(UsageError) as error:
        sweep(tmp_path, text_pipeline("stable_diffusion"), **others)
    assert why in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_student_asked_only_for_budgets_it_was_not_trained_for(
    text_pipeline: TextPipeline, lora: Path, tmp_path: Path
) -> None:
    student = f"lcm_lora_sdv1_5(path={str(lora)!r})"
    with pytest.raises(UsageError, match="no 20 calls: the student was trained for 2, 3"):
        sweep(tmp_path, text_pipeline("stable_diffusion"), solvers=[student], nfe=[20])
    assert Sweep().prompts is None
