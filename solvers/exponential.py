"""What the exponential integrators share: phi functions, and integrals of Lagrange polynomials under a weight."""

from collections.abc import Callable, Sequence
from math import exp, expm1, factorial

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

NODES, WEIGHTS = np.polynomial.legendre.leggauss(64)


def phi(k: int, z: float) -> float:
    """phi_k(z): e^z for k = 0, then (phi_{k-1}(z) - 1/(k-1)!)/z, and 1/k! at z = 0.

    Hochbruck & Ostermann 2010, "Exponential integrators", Eq. (2.10) and (2.11).  The recurrence cancels near 0, where
    the Taylor series sum z^j/(j + k)! takes over.
    """
    if k == 0:
        return exp(z)
    if abs(z) < 1:
        return sum(z**j / factorial(j + k) for j in range(20))
    value = expm1(z) / z
    for m in range(1, k):
        value = (value - 1 / factorial(m)) / z
    return value


def lagrange(nodes: ArrayLike, s: Array) -> Array:
    """At each s, the polynomials that are 1 at one node and 0 at the others: (len(nodes), len(s))."""
    n = np.asarray(nodes, np.float64)
    others = [np.delete(n, j) for j in range(len(n))]
    return np.array([np.prod((s[:, None] - o) / (n_j - o), axis=1) for n_j, o in zip(n, others, strict=True)])


def lagrange_integrals(
    nodes: Sequence[float] | Array, a: float, b: float, weight: Callable[[Array], ArrayLike] = np.ones_like
) -> Array:
    """int_a^b weight(s) L_j(s) ds for each node j, by 64-point Gauss-Legendre: (len(nodes),).

    Exact for a polynomial weight; to about 1e-14 for a smooth one.  The nodes are taken relative to a, in units of
    b - a, so that neighbouring times lose nothing to cancellation.
    """
    h = b - a
    s = (NODES + 1) / 2
    under = WEIGHTS / 2 * h * np.asarray(weight(a + h * s))
    return np.asarray(lagrange((np.asarray(nodes) - a) / h, s) @ under)
