"""Tracing: symbols are linear algebra, what is done is written down, options mean what they say."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import solvers
from solvers.grid import Grid, explicit
from solvers.model import column, conversion
from solvers.plan import Combine, Evaluate, Threshold
from solvers.schedule import Schedule
from solvers.tracer import Symbol, Tracer
from tests.solvers.common import PLANNED, draws, start

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
        ("dpmpp_2m", {"thresholding": "soft"}, r"dpmpp_2m: thresholding='soft' is none of none, static, dynamic"),
        ("ddim", {"thresholding": True}, r"ddim: thresholding=True is not a str such as 'none'"),
        ("heun", {"thresholding": "static"}, r"heun: thresholding acts on data prediction, and this works in noise"),
        ("flow_euler", {"thresholding": "dynamic"}, r"acts on data prediction, and this works in velocity"),
        ("unipc", {"thresholding": "static", "predicts": "noise"}, r"unipc: thresholding acts on data prediction"),
        ("unipc", {"predicts": "score"}, r"unipc: predicts='score' is none of noise, data, v, velocity"),
        ("ddim", {"afs": 1}, r"ddim: afs=1 is not a bool such as False"),
        ("ddim", {"afs": "true"}, r"ddim: afs='true' is not a bool"),
    ],
)
def test_options_it_lacks_or_of_another_type_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solvers.plan(name, VP, 5, grid="karras", **options)


def test_draws_are_numbered_from_zero_and_each_is_fresh() -> None:
    p = Tracer(GRID)
    p.state(2 * p.noise() + 3 * p.noise())
    assert p.instructions == [Combine(1, (), ((2.0, 0), (3.0, 1)))]


@PLANNED
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


@pytest.mark.parametrize("rule", ["static", "dynamic"])
def test_every_output_is_thresholded_when_asked(rule: str) -> None:
    p = Tracer(GRID, options={"thresholding": rule, "afs": False})
    x = p.start()
    D = p.model(x, 0)
    p.state(x + 2 * p.model_at(D, 0.3))
    assert p.instructions == [
        Evaluate(1, 0, 1.0),
        Threshold(2, 1, rule),  # type: ignore[arg-type]
        Evaluate(3, 2, 0.3),
        Threshold(4, 3, rule),  # type: ignore[arg-type]
        Combine(5, ((1.0, 0), (2.0, 4))),
    ]


def test_the_denoised_end_is_thresholded_too() -> None:
    plan = solvers.plan("dpmpp_2m", VP, 4, thresholding="static", denoise_to_zero=True)
    *_, call, threshold, last = plan.instructions
    assert (call, threshold) == (Evaluate(call.out, call.out - 1, 1e-3), Threshold(call.out + 1, call.out, "static"))
    assert last == Combine(threshold.out + 1, ((1.0, threshold.out),))


def test_thresholding_follows_the_option_that_decides_the_parametrisation() -> None:
    assert not solvers.plan("unipc", VP, 4, thresholding="static", predicts="data").linear


TIMES = [0.9, 0.6, 0.3, 0.1]


@PLANNED
def test_an_analytical_first_step_spares_one_call(name: str) -> None:
    plain, spared = (solvers.plan(name, VP, times=TIMES, afs=flag) for flag in (False, True))
    assert spared.nfe == plain.nfe - 1
    assert spared.times == plain.times


def test_an_analytical_first_step_calls_from_the_second_time_on() -> None:
    plan = solvers.plan("ddim", VP, times=TIMES, afs=True)
    assert [i.t for i in plan.instructions if isinstance(i, Evaluate)] == TIMES[1:-1]
    first = plan.instructions[0]
    assert isinstance(first, Combine)
    assert [r for _, r in first.terms] == [0]


@PLANNED
@pytest.mark.parametrize("schedule", [VP, solvers.EDM()], ids=repr)
def test_an_analytical_first_step_is_exact_where_noise_is_the_state_over_its_size(
    name: str, schedule: Schedule
) -> None:
    def noise(x: Tensor, t: Tensor) -> Tensor:
        return x / column(np.hypot(schedule.alpha(t.numpy()), schedule.sigma(t.numpy())), x)

    times, denoiser = [f * schedule.t_max for f in TIMES], solvers.Denoiser(noise, schedule)
    plain, spared = (solvers.plan(name, schedule, times=times, afs=flag) for flag in (False, True))
    x_T, z = start(schedule, 3), draws(plain, 3)
    a, b = (solvers.sample(plan, denoiser, x_T, lambda k: z[k]) for plan in (plain, spared))
    torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)


@PLANNED
@pytest.mark.parametrize("more", [{}, {"denoise_to_zero": True}], ids=["afs", "afs and denoise_to_zero"])
def test_budgets_are_spent_to_the_call_with_an_analytical_first_step(name: str, more: dict[str, bool]) -> None:
    spent = []
    for nfe in range(2, 10):
        try:
            plan = solvers.plan(name, VP, nfe, grid="karras", afs=True, **more)
        except solvers.BudgetError:
            continue
        denoiser = solvers.Denoiser(lambda x, t: 0.1 * x, VP)
        solvers.sample(plan, denoiser, torch.ones(1, 1), lambda k: torch.zeros(1, 1))
        spent.append((plan.nfe, denoiser.calls, nfe))
    assert spent
    assert all(planned == counted == nfe for planned, counted, nfe in spent)


@pytest.mark.parametrize("name", ["ddim", "dpmpp_3m", "lms", "deis_tab3"])
@pytest.mark.parametrize(
    ("options", "steps"),
    [({}, 0), ({"afs": True}, 1), ({"denoise_to_zero": True}, -1), ({"afs": True, "denoise_to_zero": True}, 0)],
    ids=str,
)
def test_a_spared_call_buys_a_step_and_a_denoising_one_costs_one(
    name: str, options: dict[str, bool], steps: int
) -> None:
    for nfe in (2, 5, 17):
        plan = solvers.plan(name, VP, nfe, grid="logsnr", **options)
        times = plan.times[: -1 if plan.times[-1] == 0 else None]
        assert (plan.nfe, len(times) - 1) == (nfe, nfe + steps)


def test_denoise_to_zero_is_refused_on_a_grid_onto_the_data() -> None:
    with pytest.raises(ValueError, match="denoise_to_zero=True: this grid ends on the data already"):
        solvers.plan("ddim", solvers.EDM(), 5, grid="edm", denoise_to_zero=True)


@pytest.mark.parametrize("beside", [{"nfe": 3}, {"grid": "karras"}, {"t_start": 0.9}, {"t_end": 0.1}], ids=str)
def test_times_are_the_whole_grid_and_nothing_stands_beside_them(beside: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="or times, the whole grid, and nothing beside it"):
        solvers.plan("ddim", VP, times=TIMES, **beside)


@pytest.mark.parametrize(
    ("name", "options", "order"),
    [
        ("dpmpp_3m", {}, 2),
        ("dpmpp_3m", {"exact": True}, 3),
        ("lms", {"order": 2}, 2),
        ("lms", {}, 4),
        ("deis_rhoab", {"order": 1}, 2),
        ("unipc", {"order": 2}, 3),
        ("unipc", {"order": 2, "corrector": False}, 2),
        ("bdia", {}, 2),
        ("bdia", {"gamma": 0.5}, 1),
    ],
)
def test_the_plan_has_the_order_that_its_options_give(name: str, options: dict[str, Any], order: int) -> None:
    plan = solvers.plan(name, VP, times=TIMES, **options)
    assert plan.order == order
    assert f"calls, order {order}, " in str(plan)


@solvers.solver(
    "of_mine",
    order=lambda options: 2 if options["k"] > 1 else 1,
    predicts="velocity",
    grids={"EDM": "karras"},
    note="the paper's, not the code's",
    nominal=lambda options: options["k"],
)
def of_mine(p: Tracer, grid: Grid, k: int = 3, predicts: str = "data") -> None:
    x = p.start()
    for i in range(grid.steps):
        x = p.state(k * x + p.model(x, i))


def test_a_method_is_what_its_declaration_says() -> None:
    assert (of_mine.name, of_mine.note, of_mine.adaptive) == ("of_mine", "the paper's, not the code's", False)
    assert list(of_mine.defaults) == ["k", "predicts", "denoise_to_zero", "thresholding", "afs"]
    assert [of_mine.default_grid(schedule) for schedule in (solvers.EDM(), VP)] == ["karras", "uniform"]
    assert of_mine.summary == (__doc__ or "").strip()
    assert isinstance(of_mine, solvers.Solver)


@pytest.mark.parametrize(("k", "order", "nominal"), [(1, 1, 1), (2, 2, 2), (3, 2, 3), (0, 1, 1)])
def test_orders_may_be_functions_of_the_options(k: int, order: int, nominal: int) -> None:
    assert of_mine.build(VP, times=TIMES, options={"k": k}).order == order
    assert of_mine.nominal_order({"k": k}) == nominal


def test_an_option_called_predicts_decides_the_parametrisation() -> None:
    plans = [of_mine.build(VP, times=TIMES, options=options) for options in ({}, {"predicts": "v"})]
    assert [plan.predicts for plan in plans] == ["data", "v"]


def test_a_note_is_kept_where_code_and_paper_part_and_is_empty_elsewhere() -> None:
    assert solvers.method("ddim").note == ""
    for name in ("dpmpp_3m", "dpm_solver_3m", "unipc", "ipndm_v"):
        assert "official" in solvers.method(name).note
