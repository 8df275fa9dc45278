"""Tracing: symbols are linear algebra, what is done is written down, options mean what they say."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import solvers
from solvers.grid import explicit
from solvers.model import conversion
from solvers.plan import Combine, Evaluate
from solvers.tracer import Symbol, Tracer

numbers = st.floats(-1e3, 1e3)
symbols = st.builds(Symbol, st.dictionaries(st.integers(0, 4), numbers), st.dictionaries(st.integers(0, 2), numbers))
VP = solvers.VPLinear()
GRID = explicit(VP, [1.0, 0.5, 0.1])


def value(x: Symbol) -> float:
    """The symbol with 2^r in register r and -3^k in draw k."""
    return sum(c * 2.0**r for r, c in x.terms.items()) - sum(c * 3.0**k for k, c in x.noise.items())


@given(symbols, symbols, numbers)
def test_symbols_add_and_scale_like_the_numbers_they_stand_for(a: Symbol, b: Symbol, c: float) -> None:
    for made, expected in [
        (a + b, value(a) + value(b)),
        (a - b, value(a) - value(b)),
        (c * a, c * value(a)),
        (a * np.float64(c), c * value(a)),
        (np.float64(c) * a, c * value(a)),
        (a / 4, value(a) / 4),
        (-a, -value(a)),
    ]:
        assert isinstance(made, Symbol)
        assert value(made) == pytest.approx(expected, rel=1e-12, abs=1e-6)


def test_products_of_symbols_are_refused() -> None:
    with pytest.raises(TypeError):
        Symbol({0: 1.0}) * Symbol({0: 1.0})  # type: ignore[operator]


def test_states_drop_zero_terms_and_keep_their_order() -> None:
    p = Tracer(GRID)
    x, D = p.start(), p.model(p.start(), 0)
    p.state(3 * D + 0.0 * p.noise() + 2 * x + 5 * p.noise() - 2 * x)
    assert p.instructions == [Evaluate(1, 0, 1.0), Combine(2, ((3.0, 1),), ((5.0, 1),))]


def test_the_network_is_called_on_a_register_or_on_a_state_written_for_it() -> None:
    p = Tracer(GRID)
    D = p.model(p.start(), 1)
    p.model_at(0.5 * D, 0.3)
    assert p.instructions == [Evaluate(1, 0, 0.5), Combine(2, ((0.5, 1),)), Evaluate(3, 2, 0.3)]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ddim", {"etta": 1.0}, r"ddim has no option 'etta': it has eta, denoise_to_zero"),
        ("ddim", {"eta": "1"}, r"ddim: eta='1' is not a float such as 0\.0"),
        ("ddim", {"eta": True}, r"eta=True is not a float"),
        ("ddim", {"eta": 1.5}, r"eta=1\.5 must lie in \[0, 1\]"),
        ("heun", {"denoise_to_zero": 1}, r"denoise_to_zero=1 is not a bool such as False"),
        ("dpmpp_2m", {"lower_order_final": 3}, r"lower_order_final=3 is not a str such as 'below_10'"),
        ("dpmpp_2m", {"lower_order_final": "sometimes"}, r"none of never, below_10, below_15, always"),
    ],
)
def test_options_it_lacks_or_of_another_type_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solvers.plan(name, VP, 5, grid="karras", **options)


def test_draws_are_numbered_from_zero_and_each_is_fresh() -> None:
    p = Tracer(GRID)
    p.state(2 * p.noise() + 3 * p.noise())
    assert p.instructions == [Combine(1, (), ((2.0, 0), (3.0, 1)))]


@pytest.mark.parametrize("name", solvers.names())
def test_denoise_to_zero_ends_with_one_more_call_and_its_data_prediction(name: str) -> None:
    times = [0.9, 0.5, 0.2]
    plain, more = (solvers.plan(name, VP, times=times, denoise_to_zero=flag) for flag in (False, True))
    assert more.instructions[: len(plain.instructions)] == plain.instructions
    call, last = more.instructions[len(plain.instructions) :]
    assert call == Evaluate(call.out, plain.instructions[-1].out, 0.2)
    A, B = conversion(plain.predicts, "data", float(VP.alpha(0.2)), float(VP.sigma(0.2)))
    assert isinstance(last, Combine)
    assert {r: c for c, r in last.terms} == {r: c for r, c in ((call.out, A), (call.state, B)) if c != 0}


def test_the_plan_holds_every_option_with_its_value() -> None:
    assert solvers.plan("ddim", VP, 5, eta=1).options == (
        ("eta", 1.0),
        ("denoise_to_zero", False),
        ("thresholding", "none"),
        ("afs", False),
    )
    assert isinstance(dict(solvers.plan("ddim", VP, 5, eta=1).options)["eta"], float)
