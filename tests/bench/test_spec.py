"""Sweeps as people write them: defaults, YAML and refusals."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import solvers
from bench.checkpoints import load
from bench.distilled import shipped
from bench.errors import UsageError
from bench.spec import SMALL, SOLVERS, Latency, Sweep
from tests.bench.common import read_sweep


def refusal(path: Path | None, **overrides: Any) -> str:
    with pytest.raises(UsageError) as caught:
        read_sweep(path, overrides)
    return str(caught.value)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    return path


def test_the_default_sweep_is_the_documented_one() -> None:
    sweep = read_sweep(None, {})
    assert sweep == Sweep()
    assert sweep.checkpoint == "digits"
    learn = {name for name in solvers.METHODS.builtin if solvers.method(name).learns}
    assert set(sweep.solvers_on(load("digits"))) == (set(solvers.METHODS.builtin) - learn) | set(shipped())
    assert {"dc_solver", "fitted", "usf"} <= learn  # what they learned does not come with the package
    assert set(sweep.solvers_on(load("gmm"))) == set(solvers.METHODS.builtin) - learn
    large = replace(load("digits"), digest="another", network=torch.nn.Linear(SMALL // 1000, 1000))
    assert sweep.solvers_on(large) == SOLVERS
    assert set(SOLVERS) <= set(solvers.names()) - learn
    flow = replace(load("digits"), digest="another", schedule=solvers.RectifiedFlow(3.0))
    for name in sweep.solvers_on(flow):
        assert solvers.method(name).build(flow.schedule, 5, options={}).times[0] == 1
    assert sweep.nfe == (1, 2, 4, 5, 6, 8, 10)
    assert (sweep.samples, sweep.seed, sweep.guidance, sweep.precision) == (2000, (0,), (1.0,), ("fp32",))
    assert (sweep.metrics, sweep.latency) == (None, Latency())


def test_a_file_is_read_and_overrides_win(tmp_path: Path) -> None:
    path = written(tmp_path, "checkpoint: gmm\nsolvers: [ddim, 'heun(grid=karras)']\nnfe: [5, 9]\nsamples: 100\n")
    sweep = read_sweep(path, {"samples": 7, "seed": 3})
    assert sweep == Sweep(
        checkpoint="gmm",
        solvers=("ddim", "heun(grid=karras)"),
        nfe=(5, 9),
        samples=7,
        seed=3,
        guidance=1.0,
        precision="fp32",
    )


def test_a_definition_leaves_nothing_to_defaults() -> None:
    gmm = load("gmm")
    definition = Sweep(checkpoint="gmm").definition(gmm)
    assert definition.keys() == {*Sweep.model_fields, "digest"}
    assert definition["metrics"] == list(gmm.metrics)
    assert definition["digest"] == gmm.digest
    assert [key for key, value in definition.items() if value is None] == [
        "guidance_interval",
        "classes",
        "prompts",
        "inception_weights",
        "quality",
    ]  # all, all, none, the usual places, no window


def test_an_unknown_key_is_named_with_its_line_and_the_nearest(tmp_path: Path) -> None:
    message = refusal(written(tmp_path, "checkpoint: gmm\n\nsolver: [ddim]\n"))
    assert "line 3" in message
    assert "'solver': did you mean 'solvers'?" in message


def test_a_bad_value_is_named_with_its_line_unless_it_was_overridden(tmp_path: Path) -> None:
    path = written(tmp_path, "checkpoint: gmm\nnfe: [5, 0]\nsamples: 1\n")
    assert "sweep.yaml, line 2: nfe = 0" in refusal(path)
    message = refusal(path, nfe=[-1])
    assert message.startswith("nfe = -1")


@pytest.mark.parametrize(
    ("text", "line"), [("seed: 1\nnfe: [5\n", 3), ("a: b: c\n", 1), ("nfe: [5]\n\tseed: 0\n", 2), ("seed: 1\n}", 2)]
)
def test_malformed_yaml_is_refused_by_its_line(tmp_path: Path, text: str, line: int) -> None:
    message = refusal(written(tmp_path, text))
    assert f"line {line}" in message
    assert "not YAML" in message


@pytest.mark.parametrize("text", ["", "- ddim\n", "ddim\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    assert "must hold a mapping" in refusal(written(tmp_path, text))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "nowhere.yaml" in refusal(tmp_path / "nowhere.yaml")


def test_an_impossible_date_is_refused_like_other_rubbish(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        read_sweep(written(tmp_path, "seed: 2020-13-45\n"), {})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("nfe", [n]) for n in (0, -1, 2.5, "x", True, None)),
        *(("samples", n) for n in (0, 1, -3, 2.5, "many", True)),
        *(("seed", n) for n in (-1, 2**64, 0.5)),
        *(("guidance", g) for g in (float("nan"), float("inf"), "strong")),
        ("nfe", []),
        ("nfe", 5),
        ("solvers", []),
        ("precision", "fp8"),
        ("checkpoint", 3),
        ("latency", "perhaps"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_its_key(key: str, value: Any) -> None:
    assert refusal(None, **{key: value}).startswith(f"{key} = ")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("quality: 3", "quality = 3: give a mapping such as {metric: fid"),
        ("quality: {metric: fid, low: 1}", "quality.high is missing: {'metric': 'fid', 'low': 1}"),
        ("quality: {metric: fid, low: 2, high: 1}", "'high': 1}: low must lie below high"),
        ("latency: maybe", "latency = 'maybe': give a mapping such as {rounds: 9}, or true or false"),
        ("seed: [1, 1]", "seed = [1, 1]: one of them twice gives the same samples twice; give each once"),
        ("metrics: []", "metrics = []: give one or more"),
        ("guidance_interval: [3, 2]", "guidance_interval = [3, 2]: the interval's first"),
    ],
)
def test_a_refusal_says_what_to_give_in_place_of_a_value(tmp_path: Path, text: str, says: str) -> None:
    message = refusal(written(tmp_path, f"checkpoint: gmm\n{text}\n"))
    assert f"line 2: {text.partition(':')[0]}" in message
    assert says in message
