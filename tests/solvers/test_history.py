"""PNDM, iPNDM, DEIS, GHVB and BDIA: their coefficients, what they share, and what they refuse."""

import re
from collections.abc import Callable
from itertools import pairwise
from math import log

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.polynomial import Polynomial
from scipy.integrate import quad

import solvers
from solvers.deis import time_of
from solvers.grid import make_grid
from solvers.ipndm import diff_sampler
from solvers.plan import Combine
from solvers.schedule import Schedule
from solvers.testing import check_order, check_point
from tests.golden import Case, cases, history
from tests.solvers.common import SCHEDULES, denoiser, start

VP, EDM = solvers.VPLinear(), solvers.EDM()
# Falling values of u, no two of which are close.
LEVELS = st.lists(st.floats(0.05, 1.0), min_size=5, max_size=5).map(lambda steps: np.cumsum(steps)[::-1].tolist())


def plan(name: str, schedule: Schedule, times: list[float], **options: solvers.Option) -> solvers.Plan:
    made = solvers.plan(name, schedule, times=times, **options)
    assert isinstance(made, solvers.Plan)
    return made


def combines(made: solvers.Plan) -> list[Combine]:
    return [i for i in made.instructions if isinstance(i, Combine)]


def weights(made: solvers.Plan) -> list[list[float]]:
    """Of each combination's network outputs, newest first, as means: their sum is 1."""
    outputs = [[c for c, _ in i.terms[1:]] for i in combines(made)]
    return [[c / sum(step) for c in step] for step in outputs]


def assert_same_plan(a: solvers.Plan, b: solvers.Plan, rel: float = 1e-12) -> None:
    for i, j in zip(combines(a), combines(b), strict=True):
        assert [r for _, r in i.terms] == [r for _, r in j.terms]
        assert [c for c, _ in i.terms] == pytest.approx([c for c, _ in j.terms], rel=rel, abs=rel)


# Coefficients


@pytest.mark.parametrize(
    "case", [c for c in cases() if re.match("deis-(tAB|rhoAB)|ds-deistab", c.id)], ids=lambda case: case.id
)
def test_deis_integrals_are_the_recorded_rectangle_sums_to_the_width_of_a_rectangle(case: Case) -> None:
    width = 3e-5 if case.id.startswith("ds-") else 3e-4  # both ends of the step are among the points there
    for ours, theirs in zip(combines(history.deis(case)), combines(history.recorded_deis(case)), strict=True):
        assert [r for _, r in ours.terms] == [r for _, r in theirs.terms]
        largest = max(abs(c) for c, _ in theirs.terms)
        assert [c for c, _ in ours.terms] == pytest.approx([c for c, _ in theirs.terms], rel=0, abs=width * largest)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_tab_has_the_integrals_of_its_paper(order: int) -> None:
    """Eq. (15): int 1/2 Psi(t', tau) beta(tau)/sigma(tau) L_j(tau) dtau, with Psi(t', tau) = alpha(t')/alpha(tau)."""
    times = [1.0, 0.7, 0.45, 0.2, 0.05]
    found = [c for c, _ in combines(plan(f"deis_tab{order}", VP, times))[-1].terms]
    for j, at in enumerate(times[3 - order : 4][::-1]):
        others = [t for t in times[3 - order : 4] if t != at]

        def integrand(tau: float, at: float = at, others: list[float] = others) -> float:
            L = np.prod([(tau - t) / (at - t) for t in others])
            beta = VP.beta_0 + (VP.beta_1 - VP.beta_0) * tau
            return float(VP.alpha(0.05) / VP.alpha(tau) * beta / 2 / VP.sigma(tau) * L)

        assert found[1 + j] == pytest.approx(quad(integrand, 0.2, 0.05, epsabs=1e-13)[0], abs=1e-11)


def test_deis_on_a_schedule_with_kinks_is_exact_to_the_kinks() -> None:
    """DDPM's t has a kink in u at each of its labels: integrated from one to the next."""
    schedule, times = solvers.VPDiscrete.linear(), [0.9, 0.5, 0.1]
    u = (schedule.sigma(np.arange(500, 99, -1) / 1000)) / schedule.alpha(np.arange(500, 99, -1) / 1000)
    slope = sum(quad(lambda v: (time_of(schedule)(np.array(v)) - 0.9) / -0.4, a, b)[0] for a, b in pairwise(u))
    assert weights(plan("deis_tab1", schedule, times))[1][0] == pytest.approx(slope / (u[-1] - u[0]), rel=1e-6)


def test_deis_takes_edm_for_the_vp_schedule_of_the_same_levels() -> None:
    assert time_of(EDM)(np.array([80.0, 0.002])) == pytest.approx([1.0, 1e-3])
    u = np.geomspace(80, 0.002, 50)
    assert (np.diff(time_of(EDM)(u)) < 0).all()


def test_deis_logrho_integrates_a_line_in_log_rho() -> None:
    (u_1, u, u_2), found = (10.0, 3.0, 1.0), weights(plan("deis_logrho", EDM, [10, 3, 1], lower_order_final="never"))
    line = ((u_2 * (log(u_2) - 1) - u * (log(u) - 1)) / (u_2 - u) - log(u_1)) / (log(u) - log(u_1))
    assert found[1] == pytest.approx([line, 1 - line], rel=1e-13)


@given(LEVELS, st.integers(1, 4))
def test_variable_step_adams_bashforth_integrates_polynomials_in_u(levels: list[float], order: int) -> None:
    u, w = levels[3::-1][:order], weights(plan("ipndm_v", EDM, levels, order=order))[3]
    for k in range(order):
        y = Polynomial.basis(k, domain=[levels[4], levels[0]], window=[-1, 1])
        exact = y.integ()
        mean = (exact(levels[4]) - exact(levels[3])) / (levels[4] - levels[3])
        assert np.dot(w, y(np.array(u))) == pytest.approx(mean, rel=1e-9, abs=1e-9)


@given(LEVELS, st.integers(1, 4))
def test_adams_bashforth_in_u_is_deis_rhoab_and_lms(levels: list[float], order: int) -> None:
    exact = plan("ipndm_v", EDM, levels, order=order)
    assert_same_plan(exact, plan("deis_rhoab", EDM, levels, order=order - 1), rel=1e-7)
    a, b = (
        solvers.sample(m, denoiser(EDM), start(EDM, 2) / 40) for m in (exact, plan("lms", EDM, levels, order=order))
    )
    torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ipndm_is_adams_bashforth_on_equal_steps(order: int) -> None:
    even = [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    assert_same_plan(plan("ipndm", EDM, even, order=order), plan("ipndm_v", EDM, even, order=order), rel=1e-11)
    known = {1: [1], 2: [3 / 2, -1 / 2], 3: [23 / 12, -16 / 12, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -9 / 24]}
    assert weights(plan("ipndm", EDM, [30, 9, 5, 4, 1], order=order))[3] == pytest.approx(known[order])


def test_ipndm_v_has_diff_samplers_weights_when_asked() -> None:
    """At order 3 they are right on equal steps alone, at order 4 not even there."""
    even = np.arange(5.0)
    assert diff_sampler(even[:4]) == pytest.approx([23 / 12, -16 / 12, 5 / 12])
    assert diff_sampler(even) == pytest.approx([2.375, -2.70833, 1.79167, -0.45833], abs=1e-5)
    times = list(make_grid("karras", EDM, 10).times)
    known = {True: [1.7209, -0.969, 0.248], False: [1.3361, -0.388, 0.052]}
    for official, three in known.items():
        assert weights(plan("ipndm_v", EDM, times, order=3, official=official))[5] == pytest.approx(three, abs=5e-4)
    two = [plan("ipndm_v", EDM, times, order=2, official=official) for official in (True, False)]
    assert_same_plan(*two)


@pytest.mark.parametrize(
    ("order", "table"),
    [
        (0.7, lambda b: [b]),
        (1.4, lambda b: [(2 + b) / 2, -(2 - b) / 2]),
        (2.6, lambda b: [(18 + 5 * b) / 12, -(24 - 8 * b) / 12, (6 - b) / 12]),
        (3.1, lambda b: [(46 + 9 * b) / 24, -(78 - 19 * b) / 24, (42 - 5 * b) / 24, -(10 - b) / 24]),
    ],
)
def test_ghvb_has_the_weights_of_its_table(order: float, table: Callable[[float], list[float]]) -> None:
    beta = order % 1
    last = weights(plan("ghvb", EDM, [6, 5, 4, 3, 2, 1], order=order))[-1]
    assert last == pytest.approx([w / beta for w in table(beta)])


# Equalities between methods


FIRST_ORDER = [
    ("deis_tab0", {}),
    ("deis_rhoab", {"order": 0}),
    ("deis_logrho", {"order": 1}),
    ("ipndm", {"order": 1}),
    ("ipndm_v", {"order": 1}),
    ("ghvb", {"order": 1.0}),
    ("hb", {"order": 1.0}),
    ("nt", {"order": 1.0}),
    ("bdia", {"gamma": 0.0}),
]


@pytest.mark.parametrize(("name", "options"), FIRST_ORDER, ids=lambda value: str(value))
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_at_first_order_all_are_ddim(name: str, options: dict[str, solvers.Option], schedule: Schedule) -> None:
    times = [0.9 * schedule.t_max * f for f in (1, 0.5, 0.2, 0.05)]
    made, ddim = (plan(n, schedule, times, **o) for n, o in ((name, options), ("ddim", {})))
    x_T, network = start(schedule, 3), denoiser(schedule)
    expected = solvers.sample(ddim, network, x_T)
    torch.testing.assert_close(solvers.sample(made, network, x_T), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize("name", ["ghvb", "hb", "nt"])
def test_momentum_of_whole_order_is_ipndm(name: str, order: int) -> None:
    times = [0.9, 0.6, 0.4, 0.3, 0.1, 0.01]
    assert_same_plan(plan(name, VP, times, order=float(order)), plan("ipndm", VP, times, order=order))


def test_the_momenta_of_fractional_order_differ() -> None:
    times = [0.9, 0.6, 0.4, 0.3]
    samples = [solvers.sample(plan(n, VP, times), denoiser(VP), start(VP, 2)) for n in ("ghvb", "hb", "nt")]
    assert all((a - b).abs().max() > 1e-3 for a in samples for b in samples if a is not b)


@pytest.mark.parametrize("times", [[80, 9, 1, 0.1], [80, 9, 1, 0]], ids=["short of the data", "onto the data"])
def test_deis_rhork2_is_heun(times: list[float]) -> None:
    a, b = (solvers.sample(plan(n, EDM, times), denoiser(EDM), start(EDM, 3)) for n in ("deis_rhork2", "heun"))
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("stages", "power"), [(2, 1), (3, 3), (4, 3)])
def test_runge_kutta_integrates_a_noise_that_depends_on_u_alone(stages: int, power: int) -> None:
    """Heun's is the trapezoid rule; Kutta's and Runge's are Simpson's, exact for cubics."""
    network = solvers.Denoiser(lambda x, t: (t**power)[:, None].expand_as(x), EDM)
    x = solvers.sample(plan(f"deis_rhork{stages}", EDM, [3, 2, 0.5]), network, torch.zeros(1, 1, dtype=torch.float64))
    assert x.item() == pytest.approx((0.5 ** (power + 1) - 3 ** (power + 1)) / (power + 1), rel=1e-12)


def test_pndm_f_starts_with_runge_kutta_in_u_where_t_is_u() -> None:
    times, x_T = [80, 30, 9, 2], start(EDM, 3)
    a, b = (solvers.sample(plan(n, EDM, times), denoiser(EDM), x_T) for n in ("pndm_f", "deis_rhork4"))
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_plms_is_pndm_s_until_there_is_more_history() -> None:
    times = [0.9, 0.6, 0.4]
    assert_same_plan(plan("plms", VP, times), plan("pndm_s", VP, times))
    assert weights(plan("pndm_s", VP, [*times, 0.3]))[-1] == pytest.approx([3 / 2, -1 / 2])
    assert weights(plan("plms", VP, [*times, 0.3]))[-1] == pytest.approx([23 / 12, -16 / 12, 5 / 12])


def test_bdia_takes_the_step_back_at_gamma() -> None:
    *_, last = combines(plan("bdia", EDM, [10, 6, 3], gamma=0.25))
    a, e, before = (c for c, _ in last.terms)
    assert (a, e, before) == pytest.approx((0.75, 3 - 6 - 0.25 * (10 - 6), 0.25))


# Calls, ends, limits


@pytest.mark.parametrize(("name", "more"), [("pndm_s", 1), ("plms", 1), ("pndm_f", 9)])
@pytest.mark.parametrize("steps", [5, 10, 20])
def test_pndm_spends_its_official_number_of_calls(name: str, more: int, steps: int) -> None:
    assert plan(name, VP, np.linspace(1, 1e-3, steps + 1).tolist()).nfe == steps + more


def test_pndm_f_is_runge_kutta_alone_below_four_steps() -> None:
    calls = [plan("pndm_f", VP, np.linspace(1, 1e-3, n + 1).tolist()).nfe for n in range(1, 6)]
    onto = [plan("pndm_f", VP, np.linspace(1, 0, n + 1).tolist()).nfe for n in range(1, 6)]
    assert (calls, onto) == ([4, 8, 12, 13, 14], [1, 5, 9, 13, 14])


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_rhork_spends_its_stages_at_each_step_but_one_onto_the_data(stages: int) -> None:
    name = f"deis_rhork{stages}"
    assert [plan(name, EDM, times).nfe for times in ([9, 3, 1], [9, 3, 0])] == [2 * stages, stages + 1]


@pytest.mark.parametrize(
    "name", ["pndm_s", "pndm_f", "plms", "ipndm", "ipndm_v", "deis_tab3", "deis_logrho", "deis_rhork3"]
)
@pytest.mark.parametrize("name_of_schedule", SCHEDULES)
def test_a_step_onto_the_data_is_the_data_prediction(name: str, name_of_schedule: str) -> None:
    schedule = SCHEDULES[name_of_schedule]
    made = plan(name, schedule, [schedule.t_max * f for f in (0.9, 0.6, 0.4, 0.2, 0.1, 0)])
    states = {}
    solvers.sample(made, denoiser(schedule), start(schedule, 2), callback=lambda i, x: states.update({i.out: x}))
    x, e = (states[r] for _, r in made.instructions[-1].terms)
    t = made.times[-2]
    torch.testing.assert_close(
        states[made.instructions[-1].out], (x - float(schedule.sigma(t)) * e) / float(schedule.alpha(t))
    )


@pytest.mark.parametrize("name", ["pndm_s", "pndm_f", "plms", "ipndm", "deis_tab2", "deis_rhork3", "hb", "bdia"])
def test_noise_says_nothing_where_there_is_no_signal(name: str) -> None:
    with pytest.raises(ValueError, match=r"noise prediction cannot start from t = 1\.0, where there is no signal"):
        plan(name, solvers.RectifiedFlow(), [1.0, 0.5, 0.1])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ipndm", {"order": 0}),
        ("ipndm_v", {"order": 5}),
        ("deis_rhoab", {"order": -1}),
        ("deis_rhoab", {"order": 4}),
        ("deis_logrho", {"order": 4}),
        ("deis_logrho", {"lower_order_final": "sometimes"}),
        ("ghvb", {"order": 0.0}),
        ("hb", {"order": 4.5}),
        ("nt", {"order": -1.0}),
        ("bdia", {"gamma": 1.5}),
    ],
    ids=lambda value: str(value),
)
def test_options_out_of_range_are_refused_by_name(name: str, options: dict[str, solvers.Option]) -> None:
    (option, value), *_ = options.items()
    with pytest.raises(ValueError, match=rf"^{name}: {option}={value!r} (must|is none of)"):
        plan(name, VP, [0.9, 0.5, 0.1], **options)


@pytest.mark.parametrize(
    ("name", "nominal"),
    [("pndm_s", 2), ("pndm_f", 4), ("plms", 4), ("ipndm", 4), ("ipndm_v", 4), ("deis_tab3", 4), ("deis_rhork4", 4)],
)
def test_the_buffers_are_those_of_the_number_of_outputs_combined(name: str, nominal: int) -> None:
    assert plan(name, VP, np.linspace(1, 0.01, 12).tolist()).buffers <= nominal + 2


VARIANTS = [
    ("ipndm", {"order": 3}),
    ("ipndm_v", {"order": 3}),
    ("deis_rhoab", {"order": 3}),
    ("deis_logrho", {"order": 3}),
    ("ghvb", {"order": 0.5}),
    ("ghvb", {"order": 1.5}),
    ("hb", {"order": 2.0}),
    ("bdia", {"gamma": 0.5}),
]


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=lambda value: str(value))
def test_the_variants_are_of_the_order_they_declare(name: str, options: dict[str, solvers.Option]) -> None:
    check_order(name, options)


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=lambda value: str(value))
@pytest.mark.parametrize("schedule", [VP, EDM], ids=["VP", "EDM"])
def test_the_variants_sample_a_point_exactly(name: str, options: dict[str, solvers.Option], schedule: Schedule) -> None:
    check_point(name, options, schedule)


@pytest.mark.parametrize("name", ["ghvb", "hb", "nt", "ipndm_v", "bdia"])
def test_the_first_output_may_be_analytical(name: str) -> None:
    made = plan(name, VP, np.linspace(1, 0.01, 9).tolist(), afs=True)
    assert made.nfe == 7
    assert solvers.sample(made, denoiser(VP), start(VP, 2)).isfinite().all()
