"""Bad input is one line on stderr and exit code 2, whatever it is, and nothing on the disk is another afterwards."""

import resource
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.main import get_command

import bench.measure.work
import bench.show
import bench.sweeps  # noqa: F401  # before any clock runs, like the two above
from bench.forkserver import start_server
from tests.chaos.asked import Answer, ask, changes, seen, surroundings
from tests.chaos.corpus import GOOD, files
from tests.chaos.lines import lines
from tests.chaos.nest import Nest

FEWSTEP = Path(sys.executable).parent / "fewstep"
CASES = [*files(), *lines()]
BY_NAME = {case.name: case for case in CASES}
made_once = cache(get_command)
LONGEST = 2100  # letters of a refusal
GROWTH = 400  # MiB that refusing may take, what is imported on the way included
IN_A_PROCESS = (  # of each category one, of those of which much could be hidden by this process
    "numbers/samples: 16^10,000", "names/reference: escapes", "bombs/doubled", "paths/prompts: '/dev/zero'",
    "tags/nfe: !!python/object/apply:os.system ['touch proof']", "lines/sweep '\\udcff.yaml' 6",
)  # fmt: skip


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No name leads to the network, and what measures runs already, with descriptors that are no case's.

    The application's commands are made once: typer makes them for each command line, which takes longer than most.
    """
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("typer.main.get_command", made_once)
    start_server()


def is_one_line(answer: Answer) -> bool:
    line = answer.err.removesuffix("\n")
    return answer.err.endswith("\n") and line.startswith("fewstep: ") and line.isprintable() and len(line) < LONGEST


def memory() -> float:
    """The most that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_there_are_enough_cases_and_each_is_another() -> None:
    assert len(CASES) >= 500
    assert len(BY_NAME) == len(CASES)
    assert len({(case.arguments, tuple(case.files.items())) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("name", BY_NAME)
def test_bad_input_is_refused_in_one_line_and_changes_nothing(name: str, tmp_path: Path) -> None:
    case, before = BY_NAME[name], memory()
    surroundings(tmp_path, case.files)
    answer = ask(tmp_path, case.arguments)
    assert answer.code == 2, answer
    assert is_one_line(answer), answer.err
    assert case.says in answer.err
    assert answer.out == ""
    assert answer.changes == ()
    assert memory() - before < GROWTH


@pytest.mark.parametrize("name", IN_A_PROCESS)
def test_the_same_in_a_process_of_its_own_with_little_memory(name: str, tmp_path: Path, forks: Nest) -> None:
    case = BY_NAME[name]
    here = surroundings(tmp_path, case.files)
    before = seen(tmp_path)
    answer = forks.answer(*case.arguments, cwd=here, memory=[1000], seconds=[20])
    said = Answer(answer.returncode, answer.stdout, answer.stderr, changes(before, seen(tmp_path)))
    assert said.code == 2, said
    assert is_one_line(said), said.err
    assert (said.out, said.changes) == ("", ())


def test_an_argument_that_is_no_text_is_refused_by_the_installed_command(tmp_path: Path) -> None:
    """As bytes, which the system hands on as they are."""
    here = surroundings(tmp_path, {})
    answer = subprocess.run([FEWSTEP, "sweep", b"\xff.yaml"], cwd=here, capture_output=True, timeout=120)
    assert answer.returncode == 2
    assert is_one_line(Answer(2, "", answer.stderr.decode(), ()))
    assert answer.stdout == b""


# Anything at all.

leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
    st.sampled_from([5, 8, 1.0, "ddim", "gmm", 2**63]),
    st.sampled_from(["kid", "heun(grid=karras)", "frechet_exact", "trajectory", "fp64", "../elsewhere", "\0", "\x1b"]),
)  # fmt: skip
values = st.recursive(
    leaves,
    lambda v: (
        st.lists(v, max_size=3)
        | st.dictionaries(st.text(max_size=8) | st.sampled_from(["gmm", "rounds", "nfe"]), v, max_size=3)
    ),
    max_leaves=6,
)
keys = st.sampled_from(
    [
        *GOOD,
        "seed",
        "guidance",
        "classes",
        "metrics",
        "reference",
        "precision",
        "overrides",
        "include",
        "quality",
        "tuned",
    ]
)
texts = st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), max_size=30)
options = st.sampled_from(
    [
        "--nfe",
        "--samples",
        "--seed",
        "--guidance",
        "--solvers",
        "--metrics",
        "--checkpoint",
        "--reference",
        "--set",
        "--out",
    ]
)


def is_planned_or_refused(text: str, *arguments: str) -> None:
    """`fewstep plan` of a sweep file either says what would run or refuses; it writes nothing in any case."""
    with TemporaryDirectory() as folder:
        surroundings(Path(folder), {"sweep.yaml": text.encode(errors="surrogatepass")})
        answer = ask(Path(folder), ["plan", "sweep.yaml", *arguments])
    assert answer.changes == ()
    if answer.code:
        assert answer.code == 2
        assert is_one_line(answer), answer.err
    else:
        assert "cells to run" in answer.out


@settings(max_examples=80)
@given(st.dictionaries(keys, values, min_size=1, max_size=3))
@example({"samples": 10**9, "nfe": [10_000]})
@example({"guidance": 1e308})
def test_any_values_are_planned_or_refused(changed: dict[str, object]) -> None:
    is_planned_or_refused(yaml.safe_dump({**GOOD, **changed}, allow_unicode=True))


@settings(max_examples=40)
@given(
    texts | st.sampled_from(["checkpoint: gmm", "nfe: [5]", "&a [*a]", "<<: {", "!!", "? ", "- - -", "%YAML", "\t"]),
    texts,
)
def test_any_text_is_planned_or_refused(first: str, second: str) -> None:
    is_planned_or_refused(f"{first}\n{second}")


@settings(max_examples=80)
@given(options, texts)
@example("--set", "a." * 3000 + "b=1")
@example("--seed", "0" * 5000)
def test_any_option_is_planned_or_refused(option: str, text: str) -> None:
    is_planned_or_refused(yaml.safe_dump(dict(GOOD)), option, text)


@settings(max_examples=40)
@given(
    st.lists(texts | options | st.sampled_from(["plan", "sweep", "rank", "ls", "--", "-", "sweep.yaml"]), max_size=4)
)
def test_any_words_are_planned_or_refused(words: list[str]) -> None:
    is_planned_or_refused(
        yaml.safe_dump(dict(GOOD)), *(word for word in words if not word.startswith(("--help", "--install", "--show")))
    )
