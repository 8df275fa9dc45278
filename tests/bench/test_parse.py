"""Solvers with options, and lists of them, as people write them."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import UsageError
from bench.words import parse, split_list


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("ddim", "ddim", {}),
        ("ddim()", "ddim", {}),
        ("ddim(eta=0.5)", "ddim", {"eta": 0.5}),
        ("ddim(t_end=1e-2, eta=-1)", "ddim", {"t_end": 0.01, "eta": -1}),
        (
            "dpmpp_2m(grid=karras, lower_order_final=always)",
            "dpmpp_2m",
            {"grid": "karras", "lower_order_final": "always"},
        ),
        ("a(x=true, y=False, z='two words')", "a", {"x": True, "y": False, "z": "two words"}),
        ("my.py:f(order=2)", "my.py:f", {"order": 2}),
        ("time_shift(ddim, window=30)", "time_shift", {"base": "ddim", "window": 30}),
    ],
)
def test_a_solver_is_a_name_and_options(text: str, name: str, options: dict[str, Any]) -> None:
    assert parse("solver", text) == (name, options)
    assert [type(v) for v in parse("solver", text)[1].values()] == [type(v) for v in options.values()]


BAD = "a(b|a(|a)(|f(1)|f(x, y)|f(x, base=y)|f('x')|f(x=[1])|f(x=(1,))|f(x=None)|f(x=1j)|f(x=b'a')|f(x=1)+g(x=2)|f(*a)"
BAD += "|f(**a)|f(x=a.b)|f(x=1)y"


@pytest.mark.parametrize("text", BAD.split("|"))
def test_a_solver_that_is_not_a_call_with_options_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"name\(option=value"):
        parse("solver", text)


@pytest.mark.parametrize(
    "code", ["__import__('pathlib').Path({0!r}).touch()", "open({0!r}, 'w')", "[open({0!r}, 'w')]"]
)
def test_code_in_an_option_is_refused_and_not_run(tmp_path: Path, code: str) -> None:
    with pytest.raises(UsageError):
        parse("solver", f"f(x={code.format(str(tmp_path / 'made'))})")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("text", ["f(x=1)(y=2)", "f(x=1, x=2)"])
def test_no_option_is_dropped_silently(text: str) -> None:
    with pytest.raises(UsageError):
        parse("solver", text)


WORD = st.text("abz_:.9", min_size=1, max_size=6)
OPTIONS = st.lists(st.tuples(WORD, WORD), max_size=3)
ITEM = WORD | st.builds(lambda name, options: f"{name}({','.join(f'{k}={v}' for k, v in options)})", WORD, OPTIONS)


@given(items=st.lists(ITEM, max_size=5), gap=st.sampled_from([",", ", ", " ,"]))
@settings(deadline=None, max_examples=50)
def test_a_list_splits_at_commas_outside_parentheses(items: list[str], gap: str) -> None:
    assert split_list(gap.join(items)) == items


def test_empty_items_of_a_list_are_dropped() -> None:
    assert split_list(" ,a,, b(x=1,y=2) ,") == ["a", "b(x=1,y=2)"]
