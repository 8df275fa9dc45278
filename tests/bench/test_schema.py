"""The JSON schema of sweep files says of a file what reading it says."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import UsageError
from bench.sweepfile import SweepFile, read_sweeps, schema

HERE = Path(__file__).parents[2]
CHECK = jsonschema.Draft202012Validator(schema())
FILES = sorted((HERE / "results").rglob("*.yaml"))


def test_the_committed_schema_is_the_one_that_the_command_writes(capsys: pytest.CaptureFixture[str]) -> None:
    from bench.cli.running import schema as command

    command()
    assert capsys.readouterr().out == (HERE / "docs" / "sweep.schema.json").read_text(), (
        "write it again: fewstep schema > docs/sweep.schema.json"
    )


def test_it_is_a_schema_and_every_key_says_what_it_is() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    assert schema()["properties"].keys() == SweepFile.model_fields.keys()
    for name, about in [*schema()["properties"].items(), *schema()["$defs"]["Latency"]["properties"].items()]:
        assert about["description"].endswith("."), name
    assert "dpmpp_2m" in json.dumps(schema()["properties"]["solvers"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_committed_sweep_files_are_accepted(path: Path) -> None:
    CHECK.validate(yaml.safe_load(path.read_text()))
    assert read_sweeps(path, {})


@pytest.mark.parametrize(
    "text",
    [
        "checkpoint: [digits, gmm]\noverrides: {gmm: {nfe: [5, 11], latency: false}}",
        "include: [a.yaml, b.yaml]",
        "solvers: [ddim, {dpmpp_2m: {grid: [karras, logsnr], afs: true, t_end: 0.1}}, {unipc: null}]",
        "latency: {rounds: 9, threads: null}\nquality: {metric: fid, low: 1, high: 2.5}",
        "seed: 3\nguidance: [1, 7.5]\nprecision: bf16\nreference: cifar10\nclasses: null",
    ],
)
def test_every_form_is_accepted(text: str) -> None:
    CHECK.validate(yaml.safe_load(text))
    SweepFile.model_validate(yaml.safe_load(text))


@pytest.mark.parametrize(
    "text",
    [
        "nfe: 5", "nfe: [0]", "nfe: [2.5]", "nfe: [true]", "nfe: []", "samples: 1", "seed: -1", "seed: [1, 1]",
        "guidance: strong", "precision: fp8", "solvers: ddim", "solvers: []", "solvers: [3]", "solver: [ddim]",
        "solvers: [{ddim: {eta: []}}]", "solvers: [{ddim: 3}]", "solvers: [{}]", "checkpoint: 3", "checkpoint: []",
        "checkpoint: [gmm, gmm]", "latency: maybe", "latency: {rounds: 4}", "latency: {round: 9}",
        "quality: {metric: fid, low: 1}", "overrides: {gmm: {checkpoint: gmm}}", "overrides: {gmm: 3}",
        "guidance_interval: [1]", "classes: [-1]", "metrics: fid", "include: 3",
    ],
)  # fmt: skip
def test_what_reading_refuses_by_its_form_the_schema_refuses(text: str, tmp_path: Path) -> None:
    assert not CHECK.is_valid(yaml.safe_load(text))
    (tmp_path / "sweep.yaml").write_text(text)
    with pytest.raises((UsageError, LookupError)):
        read_sweeps(tmp_path / "sweep.yaml", {})


numbers = st.one_of(st.integers(-2, 30), st.floats(-2, 30).filter(lambda x: not x.is_integer()))  # 5.0 is JSON's 5
words = st.sampled_from(["ddim", "karras", "fp32", "digits", "gmm", "eager", "fid", "maybe"])
plain = st.one_of(st.none(), st.booleans(), numbers, words)
anything = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["rounds", "threads", "metric", "low", "high", "gmm", "nfe", "ddim", "grid", "latency"]),
        inner, max_size=3,
    ),
    max_leaves=8,
)  # fmt: skip
SEMANTIC = ("low must lie below high", "the interval's first", "one of them twice")


@given(st.dictionaries(st.sampled_from([*SweepFile.model_fields, "nonsense"]), anything, max_size=3))
def test_what_the_schema_accepts_reading_accepts_but_for_what_it_means(written: dict[str, Any]) -> None:
    if CHECK.is_valid(written):
        says = refusal(written)
        assert not says or any(words in says for words in SEMANTIC), written


def refusal(written: dict[str, Any]) -> str:
    """What reading says against it; nothing, where it takes it."""
    try:
        SweepFile.model_validate(written)
    except ValueError as error:
        return str(error)
    return ""
