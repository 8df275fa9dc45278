"""Sweep files: axes of solver options, several checkpoints, includes, the command line's settings, and refusals."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import cli
from bench.errors import UsageError
from bench.runner import prepare
from bench.spec import Latency, Window
from bench.sweepfile import read_sweeps
from bench.sweeps import prepare_all
from bench.words import choices, parse, spelled
from solvers import UnknownNameError
from tests.bench.common import read_sweep

BASE = """
samples: 64
latency: {rounds: 7, threads: 1}
quality: {metric: frechet_exact, low: 0.1, high: 3}
"""
BOTH = """
include: base.yaml
checkpoint: [gmm, digits]
solvers: [ddim, {dpmpp_2m: {grid: [karras, logsnr]}}]
nfe: [5]
latency: false
quality: null
metrics: [trajectory]
overrides:
  gmm:
    nfe: [6, 11]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "both.yaml").write_text(BOTH)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(text: str, name: str = "sweep.yaml") -> Path:
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text(text)
    return Path(name)


def refusal(text: str, **others: Any) -> str:
    with pytest.raises((UsageError, UnknownNameError)) as caught:
        read_sweeps(written(text), others)
    return str(caught.value)


# Solver options as axes.


def test_options_are_multiplied_and_strings_stay_as_they_are(folder: Path) -> None:
    text = """
solvers:
  - ddim
  - dpmpp_2m: {grid: [karras, logsnr], lower_order_final: [always, never], t_end: 1e-3}
  - "heun(grid=karras)"
  - unipc:
"""
    assert read_sweep(written(text), {}).solvers == (
        "ddim",
        "dpmpp_2m(grid=karras, lower_order_final=always, t_end=0.001)",
        "dpmpp_2m(grid=karras, lower_order_final=never, t_end=0.001)",
        "dpmpp_2m(grid=logsnr, lower_order_final=always, t_end=0.001)",
        "dpmpp_2m(grid=logsnr, lower_order_final=never, t_end=0.001)",
        "heun(grid=karras)",
        "unipc",
    )


def test_the_product_is_the_cells_that_texts_would_be(folder: Path) -> None:
    def keys(solvers: str) -> list[str]:
        text = f"checkpoint: gmm\nsolvers: {solvers}\nnfe: [5]\nsamples: 8\nlatency: false\n"
        return [cell.key for cell in prepare(read_sweep(written(text), {}), folder / "run", "cpu").cells]

    assert keys("[{dpmpp_2m: {grid: [karras, uniform]}}]") == keys(
        "['dpmpp_2m(grid=karras)', 'dpmpp_2m(grid=uniform)']"
    )
    assert len(set(keys("[{ddim: {eta: [0, 0.5, 1], afs: [true, false]}}]"))) == 6


names = st.from_regex(r"[a-z]\w{0,8}(\.py:f)?", fullmatch=True)
options = st.from_regex(r"o_[a-z0-9_]{0,8}", fullmatch=True)
values = st.one_of(
    st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=8),
    st.sampled_from(["true", "None", "lambda", "karras", "a b", "it's", "x)", ","]),
)  # fmt: skip


@given(names, st.dictionaries(options, values, max_size=4))
def test_what_is_spelled_is_parsed_again(name: str, given: dict[str, Any]) -> None:
    again, options = parse("solver", spelled(name, given))
    assert again == name
    assert options == given
    assert [type(v) for v in options.values()] == [type(v) for v in given.values()]


@given(names, st.dictionaries(options, st.lists(values, min_size=1, max_size=3), max_size=3))
def test_a_product_has_every_choice_once(name: str, axes: dict[str, list[Any]]) -> None:
    found = [parse("solver", text)[1] for text in choices({name: axes})]
    size = 1
    for axis in axes.values():
        size *= len(axis)
    assert len(found) == size
    for option, axis in axes.items():
        for value in axis:
            assert sum(repr(f[option]) == repr(value) for f in found) == size // len(axis) * sum(
                repr(v) == repr(value) for v in axis
            )


# Several checkpoints, includes, what is given.


def test_each_checkpoint_has_its_own_and_what_is_given_wins(folder: Path) -> None:
    gmm, digits = read_sweeps(Path("both.yaml"), {})
    assert (gmm.checkpoint, gmm.nfe, digits.checkpoint, digits.nfe) == ("gmm", (6, 11), "digits", (5,))
    assert gmm.samples == digits.samples == 64
    assert gmm.latency is digits.quality is None
    gmm, digits = read_sweeps(Path("both.yaml"), {"nfe": [8], "overrides": {"digits": {"samples": 9}}})
    assert (gmm.nfe, digits.nfe, gmm.samples, digits.samples) == ((8,), (8,), 64, 9)
    (alone,) = read_sweeps(Path("both.yaml"), {"checkpoint": "digits"})  # gmm's overrides are no error then
    assert (alone.checkpoint, alone.nfe) == ("digits", (5,))


def test_mappings_are_merged_and_the_rest_is_replaced(folder: Path) -> None:
    written("nfe: [5]\nlatency: {threads: 2}\nseed: [0, 1]\n", "deep/more.yaml")
    sweep = read_sweep(written("include: [base.yaml, deep/more.yaml]\nquality: {high: 2.5}\nseed: 4\n"), {})
    assert sweep.latency == Latency(rounds=7, threads=2)
    assert sweep.quality == Window(metric="frechet_exact", low=0.1, high=2.5)
    assert (sweep.seed, sweep.nfe, sweep.samples) == ((4,), (5,), 64)
    assert read_sweep(Path("sweep.yaml"), {"latency": {"rounds": 9}}).latency == Latency(rounds=9, threads=2)


def test_includes_are_looked_for_beside_the_file_that_has_them(folder: Path) -> None:
    written("include: inner.yaml\nnfe: [5]\n", "deep/outer.yaml")
    written("samples: 3\nnfe: [6]\n", "deep/inner.yaml")
    sweep = read_sweep(written("include: deep/outer.yaml\n"), {})
    assert (sweep.samples, sweep.nfe) == (3, (5,))


def test_yaml_merges_and_small_numbers_are_understood(folder: Path) -> None:
    text = "latency: &usual {rounds: 9}\noverrides: {digits: {latency: {<<: *usual, threads: 1, seconds: 5e-1}}}\n"
    assert read_sweep(written(text), {}).latency == Latency(rounds=9, threads=1, seconds=0.5)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nfe: [5]\nsamples: 3\nnfe: [6]\n", "sweep.yaml, line 3: 'nfe' stands here twice, first in line 1"),
        ("latency: {rounds: 9,\n  rounds: 8}\n", "sweep.yaml, line 2: 'rounds' stands here twice"),
        ("seed: 1\ninclude: nowhere.yaml\n", "line 2: include = 'nowhere.yaml': there is no file nowhere.yaml"),
        ("include: sweep.yaml\n", "sweep.yaml, line 1: include = 'sweep.yaml': sweep.yaml includes this file"),
        ("include:\n - base.yaml\n - 3\n", "line 3: include = 3: give a file"),
        ("include: bad.yaml\nnfe: [5]\n", "bad.yaml, line 2: samples = 1: "),
        ("checkpoint: [gmm, gmm]\n", "line 1: checkpoint = ['gmm', 'gmm']: one of them twice"),
        ("checkpoint: []\n", "checkpoint = []: give one or more"),
        ("checkpoint: gmm\noverrides:\n  gm: {nfe: [5]}\n", "line 3: overrides: unknown checkpoint 'gm': did you mean"),
        ("overrides:\n  digits:\n    nfe:\n      - 0\n", "line 4: overrides.digits.nfe = 0"),
        ("overrides:\n  digits:\n    nfes: [5]\n", "line 3: overrides.digits: unknown key 'nfes': did you mean 'nfe'?"),
        ("overrides: 3\n", "line 1: overrides = 3: give a mapping such as {gmm:"),
        ("solvers: [{dpmpp_2m: karras}]\n", "'dpmpp_2m' needs its options in a mapping"),
        ("solvers: [{'heun(afs=true)': {grid: karras}}]\n", "needs its options in a mapping"),
        ("solvers: [{dpmpp_2m: {grid: []}}]\n", "grid has no value: give one or more"),
        ("solvers: [{dpmpp_2m: {grid: [[a]]}}]\n", "grid = ['a']: give a number, a word"),
        ("solvers: [{dpmpp_2m: {t_end: .nan}}]\n", "t_end = nan: give a number"),
        ("solvers: [{dpmpp_2m: {a-b: 3}}]\n", "'a-b' is not an option's name"),
        ("solvers: [{}]\n", "an empty mapping names none"),
        ("solvers:\n - ddim\n - 3\n", "line 3: solvers = 3"),
        ("? [a]\n: 3\n", "line 1: a key must be a word"),
        ("a: &a {b: *a}\n", "sweep.yaml is nested deeper than 32 levels"),
        ("latency: !odd {rounds: 9}\n", "line 1: a !odd: give numbers, words"),
    ],
)
def test_a_refusal_names_the_file_the_line_and_the_value(folder: Path, text: str, says: str) -> None:
    written("nfe: [6]\nsamples: 1\n", "bad.yaml")
    message = refusal(text)
    assert says in message
    assert "\n" not in message


def test_a_circle_of_includes_is_refused(folder: Path) -> None:
    written("include: sweep.yaml\n", "other.yaml")
    assert "other.yaml, line 1: include = 'sweep.yaml': sweep.yaml includes this file" in refusal("include: other.yaml")


def test_a_value_that_was_replaced_is_no_error_and_what_is_given_has_no_line(folder: Path) -> None:
    assert read_sweep(written("seed: [0, -1]\n"), {"seed": 2}).seed == (2,)
    assert refusal("seed: [0, 1]\n", seed=[3, -1]).startswith("seed = -1")
    written("seed: [0, -1]\n", "other.yaml")
    assert refusal("include: other.yaml\nnfe: [5]\n\nseed: -2\n").startswith("sweep.yaml, line 4: seed = -2")


# The command line.


@pytest.fixture
def fewstep(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command line in this process: its exit code, and what it prints."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fewstep", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return int(stopped.value.code or 0), *capsys.readouterr()

    return run


def test_several_checkpoints_have_a_folder_each_and_a_failing_one_stops_no_other(
    folder: Path, fewstep: Callable[..., tuple[int, str, str]]
) -> None:
    for job in prepare_all(Path("both.yaml"), {"samples": 16}, "cpu", Path("out"), None):
        job.open()
    (folder / "out" / "gmm" / "table.csv").mkdir()  # so that gmm, which comes first, cannot write its report
    code, _, err = fewstep("sweep", "both.yaml", "--samples", "16", "--out", "out")
    assert code == 1
    assert "failed: gmm: IsADirectoryError" in err
    assert (folder / "out" / "digits" / "table.csv").is_file()
    definitions = {name: json.loads((folder / "out" / name / "sweep.json").read_text()) for name in ("gmm", "digits")}
    assert {name: d["nfe"] for name, d in definitions.items()} == {"gmm": [6, 11], "digits": [5]}
    _, state, _ = fewstep("status", "out")
    assert "out/digits: digits, 3 cells done" in state
    assert "out/gmm: gmm, 6 cells done" in state
    _, ranking, _ = fewstep("rank", "out")
    assert ranking.index("out/digits:") < ranking.index("5 calls") < ranking.index("out/gmm:")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("both.yaml --set overrides.digits.samples=1", "overrides.digits.samples = 1"),
        ("both.yaml --set latency", "--set 'latency' is not of the form key=value"),
        ("both.yaml --set latency..rounds=9", "is not of the form key=value"),
        ("both.yaml --set nfe=[5", "--set 'nfe=[5': the value, line 1: not YAML: expected ',' or ']'"),
        ("both.yaml --nfe 5 --set nfe=[6]", "--nfe is given too"),
        ("both.yaml --set latencies=false", "unknown key 'latencies': did you mean 'latency'?"),
        ("both.yaml --set include=nowhere.yaml", "include = 'nowhere.yaml': there is no file"),
        ("both.yaml --solvers lcm_digits", "student 'lcm_digits'"),  # of digits, not of gmm, which comes first
        ("both.yaml --out used", "used holds results, and several checkpoints need a folder of folders"),
        ("both.yaml --png pngs", "gmm makes no images"),
        ("alike.yaml", "two of them would share the folder results/local-alike/x"),
    ],
)
def test_bad_input_writes_nothing_for_any_checkpoint(
    folder: Path, arguments: str, says: str, fewstep: Callable[..., tuple[int, str, str]]
) -> None:
    written("{}", "used/sweep.json")
    written("checkpoint: [a/x, b/x]\n", "alike.yaml")
    before = sorted(folder.rglob("*"))
    code, out, err = fewstep("sweep", *arguments.split())
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err
    assert sorted(folder.rglob("*")) == before


def test_settings_reach_every_key(folder: Path, fewstep: Callable[..., tuple[int, str, str]]) -> None:
    given = ["latency.rounds=9", "latency.threads=1", "checkpoint=gmm", "quality=null", "samples=1e1"]
    code, _, err = fewstep("plan", *(word for item in given for word in ("--set", item)))
    assert code == 2
    assert "samples = 10.0" in err  # the only one of them that is wrong
