"""What the exponential integrators share: phi functions, and integrals of Lagrange polynomials under a weight."""

from collections.abc import Callable, Sequence
from math import exp, expm1, factorial

import numpy as np
from numpy.polynomial import Polynomial
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

NODES, WEIGHTS = np.polynomial.legendre.leggauss(64)


def phi(k: int, z: float) -> float:
    """phi_k(z): e^z for k = 0, then (phi_{k-1}(z) - 1/(k-1)!)/z, and 1/k! at z = 0.

    Hochbruck & Ostermann 2010, "Exponential integrators", Eq. (2.10) and (2.11).  The recurrence cancels near 0, where the Taylor series sum z^j/(j + k)! takes over.
    """
    if k == 0:
        return exp(z)
    if abs(z) < 1:
        return sum(z**j / factorial(j + k) for j in range(20))
    value = expm1(z) / z
    for m in range(1, k):
        value = (value - 1 / factorial(m)) / z
    return value


def lagrange(nodes: Sequence[float] | Array, j: int) -> Polynomial:
    """The polynomial that is 1 at nodes[j] and 0 at the other nodes."""
    others = [n for i, n in enumerate(nodes) if i != j]
    basis = Polynomial.fromroots(others) if others else Polynomial([1.0])
    return basis / basis(nodes[j])


def lagrange_integrals(
    nodes: Sequence[float] | Array, a: float, b: float, weight: Callable[[Array], ArrayLike] = np.ones_like
) -> Array:
    """int_a^b weight(s) L_j(s) ds for each node j, by 64-point Gauss-Legendre: (len(nodes),).

    Exact for a polynomial weight; to about 1e-14 for a smooth one.  The nodes are taken relative to a, in units of
    b - a, so that neighbouring times lose nothing to cancellation.
    """
    h = b - a
    s = (NODES + 1) / 2
    scaled = (np.asarray(nodes) - a) / h
    under = WEIGHTS / 2 * h * np.asarray(weight(a + h * s))
    return np.array([under @ lagrange(scaled, j)(s) for j in range(len(scaled))])
