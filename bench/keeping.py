"""What is kept beside a record of the features its numbers came from: all of them, halves, moments, or none."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bench.metrics.gaussian import Moments

Keep = Literal["features", "float16", "moments", "nothing"]
ALWAYS = ("images",)  # the few first ones, which figures show
MOMENTS = ("n", "mean", "covariance")  # behind a layer's name and a dot


def kept(arrays: Mapping[str, NDArray[Any]], keep: Keep) -> dict[str, NDArray[Any]]:
    """The arrays of a sidecar, from those of a cell or of a larger sidecar: layers (N, d) as they are, in half the
    bytes, as n, mean and covariance in float64, or not at all.

    A layer that float16 cannot hold stays as it is, and so does one that is smaller than its moments; of moments
    nothing but moments can be made.
    """
    found: dict[str, NDArray[Any]] = {}
    for name, array in arrays.items():
        if name in ALWAYS or (is_moment(name) and keep != "nothing"):
            found[name] = array
        elif not is_moment(name):
            found |= _kept(name, array, keep)
    return found


def is_moment(name: str) -> bool:
    """Whether an array is one of a layer's moments."""
    _, dot, last = name.rpartition(".")
    return bool(dot) and last in MOMENTS


def held(arrays: Mapping[str, NDArray[Any]]) -> Keep:
    """What a sidecar holds of features, at the least."""
    layers = {name: array.dtype for name, array in arrays.items() if name not in ALWAYS}
    if any(map(is_moment, layers)):
        return "moments"
    if any(dtype == np.float16 for dtype in layers.values()):
        return "float16"
    return "features" if layers else "nothing"


def _kept(layer: str, features: NDArray[Any], keep: Keep) -> dict[str, NDArray[Any]]:
    if keep == "float16":
        with np.errstate(over="ignore"):
            half = features.astype(np.float16)
        return {layer: half if np.isfinite(half).all() else features}
    if keep == "moments":
        if features.nbytes <= 8 * (1 + features.shape[1] + features.shape[1] ** 2):
            return {layer: features}
        m = Moments.of(features)
        found = (np.array(m.n), m.mean, m.covariance)
        return {f"{layer}.{name}": array for name, array in zip(MOMENTS, found, strict=True)}
    return {layer: features} if keep == "features" else {}
