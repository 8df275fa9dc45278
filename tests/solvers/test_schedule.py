"""Schedules: lambda and its inverse, variance preservation, the published betas, JSON."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import solvers
from solvers.schedule import Schedule, schedule_from_dict
from tests.solvers.common import SCHEDULES

VP = [s for s in SCHEDULES.values() if not isinstance(s, solvers.EDM | solvers.RectifiedFlow)]
EVERY = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
fractions = st.floats(0, 1)


def between(schedule: Schedule, u: float) -> float:
    return schedule.t_end + u * (schedule.t_max - schedule.t_end)


@EVERY
@given(u=fractions)
def test_t_of_lam_inverts_lam(schedule: Schedule, u: float) -> None:
    t = between(schedule, u)
    assert schedule.t_of_lam(schedule.lam(t)) == pytest.approx(t, rel=1e-9)


@EVERY
@given(u=fractions)
def test_lam_is_the_log_of_alpha_over_sigma(schedule: Schedule, u: float) -> None:
    t = between(schedule, u * 0.999)
    assert schedule.lam(t) == pytest.approx(np.log(schedule.alpha(t) / schedule.sigma(t)), abs=1e-9)


@EVERY
def test_lam_falls_with_time(schedule: Schedule) -> None:
    assert (np.diff(schedule.lam(np.linspace(schedule.t_end, schedule.t_max, 5000))) < 0).all()


@EVERY
def test_the_data_is_at_time_zero_and_infinite_lambda(schedule: Schedule) -> None:
    assert schedule.lam(0) == np.inf
    assert schedule.t_of_lam(np.inf) == 0
    assert (schedule.alpha(0), schedule.sigma(0)) == (1, 0)


@EVERY
def test_arrays_and_scalars_agree_in_float64(schedule: Schedule) -> None:
    t = np.linspace(schedule.t_end, 0.9 * schedule.t_max, 7)
    for f in (schedule.alpha, schedule.sigma, schedule.lam):
        assert f(t.tolist()).dtype == np.float64
        np.testing.assert_allclose(f(t), [float(f(v)) for v in t], rtol=1e-14)


@pytest.mark.parametrize("schedule", VP, ids=repr)
@given(u=fractions)
def test_variance_is_preserved(schedule: Schedule, u: float) -> None:
    t = u * schedule.t_max
    assert schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2 == pytest.approx(1, abs=1e-14)


@given(exponent=st.floats(-14, -5))
def test_linear_sigma_keeps_its_digits_near_the_data(exponent: float) -> None:
    t = 10**exponent
    integral = 0.1 * t + 9.95 * t**2  # of beta; 1 - alpha^2 = 1 - exp(-integral)
    assert solvers.VPLinear().sigma(t) == pytest.approx(np.sqrt(integral - integral**2 / 2), rel=1e-12)


@given(exponent=st.floats(-14, -3))
def test_discrete_sigma_keeps_its_digits_near_the_data(exponent: float) -> None:
    t = 10**exponent
    expected = np.sqrt(-np.expm1(1000 * t * np.log1p(-1e-4)))
    assert solvers.VPDiscrete.linear().sigma(t) == pytest.approx(expected, rel=1e-12)


@given(exponent=st.floats(-6, -3))
def test_cosine_sigma_keeps_its_digits_near_the_data(exponent: float) -> None:
    t, s = 10**exponent, 0.008
    a, b = 0.5 * np.pi * s / (1 + s), 0.5 * np.pi * (t + s) / (1 + s)
    expected = np.sqrt(np.sin(b - a) * np.sin(b + a)) / np.cos(a)  # 1 - cos^2 b / cos^2 a without cancellation
    assert solvers.VPCosine().sigma(t) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(
    ("schedule", "betas"),
    [
        (solvers.VPDiscrete.linear(), np.linspace(1e-4, 0.02, 1000)),
        (solvers.VPDiscrete.scaled_linear(), np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2),
        (solvers.VPDiscrete((0.1, 0.2, 0.5)), np.array([0.1, 0.2, 0.5])),
    ],
    ids=["linear", "scaled_linear", "explicit"],
)
def test_discrete_levels_are_the_cumulative_product(schedule: solvers.VPDiscrete, betas: np.ndarray) -> None:
    t = (np.arange(len(betas)) + 1) / len(betas)
    np.testing.assert_allclose(schedule.alpha(t) ** 2, np.cumprod(1 - betas), rtol=1e-12)
    assert schedule.t_end == 1 / len(betas)


def test_published_levels() -> None:
    assert solvers.VPLinear().alpha(1.0) == pytest.approx(np.exp(-0.5 * (0.1 + 20) / 2), rel=1e-14)
    assert solvers.EDM().sigma([0.002, 80]).tolist() == [0.002, 80]
    assert (solvers.RectifiedFlow().alpha(0.25), solvers.RectifiedFlow().sigma(0.25)) == (0.75, 0.25)
    assert solvers.VPCosine().alpha(0.5) == pytest.approx(
        np.cos(0.5 * np.pi * 0.508 / 1.008) / np.cos(0.5 * np.pi * 0.008 / 1.008), rel=1e-14
    )


def test_only_exploding_noise_starts_wider_than_one() -> None:
    assert [s.prior_std(s.t_max) for s in SCHEDULES.values()] == [1, 1, 1, 1, 80, 1]


@EVERY
def test_json_round_trip(schedule: Schedule) -> None:
    assert schedule_from_dict(json.loads(json.dumps(schedule.to_dict()))) == schedule


@given(beta_0=st.floats(0.01, 1), beta_1=st.floats(5, 50))
def test_parameters_survive_json(beta_0: float, beta_1: float) -> None:
    schedule = solvers.VPLinear(beta_0, beta_1)
    assert schedule_from_dict(json.loads(json.dumps(schedule.to_dict()))) == schedule != solvers.VPLinear(0.005, 3)


@pytest.mark.parametrize("d", [{"name": "VPQuadratic"}, {}, {"name": None}])
def test_an_unknown_name_is_one_clear_value_error(d: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"^unknown schedule .*: known: VPLinear, VPCosine, .*$") as caught:
        schedule_from_dict(d)
    assert "\n" not in str(caught.value)
