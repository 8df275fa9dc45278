"""What the exponential integrators share: phi functions by their integrals, and integrals of Lagrange polynomials."""

from fractions import Fraction
from math import exp, factorial

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.polynomial import Polynomial
from scipy.integrate import quad

from solvers.exponential import lagrange, lagrange_integrals, phi

arguments = st.floats(-20, 20) | st.floats(-1.5, 1.5) | st.floats(-1e-6, 1e-6)
orders = st.integers(1, 5)
ADAMS_BASHFORTH = {
    1: [1],
    2: [3 / 2, -1 / 2],
    3: [23 / 12, -16 / 12, 5 / 12],
    4: [55 / 24, -59 / 24, 37 / 24, -9 / 24],
}


@given(orders, arguments)
@example(3, 0.0)
@example(3, 5e-324)
@example(3, -5e-324)
@example(5, 1.0)
@example(5, -1.0)
@example(5, float(np.nextafter(1, 0)))
def test_phi_is_its_integral(k: int, z: float) -> None:
    """Hochbruck & Ostermann 2010, Eq. (2.9): phi_k(z) = int_0^1 e^((1 - s) z) s^(k - 1)/(k - 1)! ds."""
    integral, _ = quad(lambda s: exp((1 - s) * z) * s ** (k - 1) / factorial(k - 1), 0, 1, epsabs=0, epsrel=1e-13)
    assert phi(k, z) == pytest.approx(integral, rel=1e-11)


@pytest.mark.parametrize("k", range(1, 6))
def test_phi_loses_nothing_to_cancellation_at_any_size_of_its_argument(k: int) -> None:
    """Against the series sum z^j/(j + k)! in exact arithmetic."""
    for z in [s * size for size in np.geomspace(1e-9, 5, 60).tolist() for s in (1, -1)]:
        series = sum(Fraction(z) ** j / factorial(j + k) for j in range(50))
        assert phi(k, z) == pytest.approx(float(series), rel=1e-12)


@given(st.integers(0, 5), arguments)
def test_phi_obeys_its_recurrence(k: int, z: float) -> None:
    assert z * phi(k + 1, z) + 1 / factorial(k) == pytest.approx(phi(k, z), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("k", range(7))
def test_phi_is_one_over_the_factorial_at_zero(k: int) -> None:
    assert phi(k, 0.0) == 1 / factorial(k)


@pytest.mark.parametrize("z", [-20.0, -1.0, 0.0, 1e-9, 3.0])
def test_phi_0_is_the_exponential(z: float) -> None:
    assert phi(0, z) == exp(z)


@pytest.mark.parametrize("k", range(1, 6))
@pytest.mark.parametrize("z", [-1.0, 1.0])
def test_phi_is_smooth_where_the_series_hands_over(k: int, z: float) -> None:
    inside, outside = phi(k, z * (1 - 1e-13)), phi(k, z)
    assert inside == pytest.approx(outside, rel=2e-12)


nodes_apart = st.lists(st.integers(-12, 12), min_size=1, max_size=5, unique=True).map(lambda n: [i / 8 for i in n])


@given(nodes_apart)
def test_lagrange_polynomials_are_one_at_their_node_and_zero_at_the_others(nodes: list[float]) -> None:
    np.testing.assert_array_equal(lagrange(nodes, np.array(nodes)), np.eye(len(nodes)))


@given(nodes_apart, st.floats(-2, 2), st.floats(0.1, 2), st.floats(-3, 3))
def test_weights_add_up_to_the_integral_of_the_weight(nodes: list[float], a: float, h: float, k: float) -> None:
    total = lagrange_integrals(nodes, a, a + h, lambda s: np.exp(k * s)).sum()
    expected = quad(lambda s: exp(k * s), a, a + h, epsabs=0, epsrel=1e-13)[0]
    assert total == pytest.approx(expected, rel=1e-6)  # far from the nodes the polynomials are large


@given(st.lists(st.floats(-2, 2), min_size=4, max_size=4), st.floats(-1, 1), st.floats(-3, 3))
def test_polynomials_through_the_nodes_are_integrated_exactly(coefficients: list[float], a: float, k: float) -> None:
    nodes, b, f = [0.1, -0.4, -1.0, -1.3], a + 0.5, Polynomial(coefficients)
    found = lagrange_integrals(nodes, a, b, lambda s: np.exp(k * s)) @ [f(n) for n in nodes]
    expected, _ = quad(lambda s: exp(k * s) * f(s), a, b, epsabs=1e-14, epsrel=1e-13)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_a_polynomial_of_higher_degree_is_not_integrated_exactly() -> None:
    nodes = [0.0, -1.0]
    assert lagrange_integrals(nodes, 0.0, 1.0) @ [n**2 for n in nodes] != pytest.approx(1 / 3, rel=0.1)


@pytest.mark.parametrize("order", ADAMS_BASHFORTH)
def test_equal_steps_give_adams_bashforth(order: int) -> None:
    weights = lagrange_integrals([-float(j) for j in range(order)], 0.0, 1.0)
    np.testing.assert_allclose(weights, ADAMS_BASHFORTH[order], rtol=1e-13)


@pytest.mark.parametrize("order", ADAMS_BASHFORTH)
@pytest.mark.parametrize("h", [2.0**-10, -(2.0**-10)])
def test_short_steps_far_from_zero_lose_nothing_to_cancellation(order: int, h: float) -> None:
    a = 2.0**20  # the nodes are exact in binary
    weights = lagrange_integrals([a - j * h for j in range(order)], a, a + h)
    np.testing.assert_allclose(weights, h * np.array(ADAMS_BASHFORTH[order]), rtol=1e-12)


def test_the_integral_backwards_is_the_negative() -> None:
    forwards, backwards = (lagrange_integrals([0.0, 0.3, 1.0], *ends, np.exp) for ends in ((0.2, 0.9), (0.9, 0.2)))
    np.testing.assert_allclose(backwards, -forwards, rtol=1e-12)
