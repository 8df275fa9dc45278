"""What a Frechet distance costs once the reference's factor is there: d = 2048, one thread, beside the usual ways.

The ways of torch-fidelity (eigenvalues of the product) and of clean-fid and pytorch-fid (a matrix square root) are
timed in the same rounds on the same moments; each must agree with ours.
"""

import time
from collections.abc import Callable
from statistics import median

import numpy as np
import pytest
import scipy.linalg
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from threadpoolctl import threadpool_limits

from bench.metrics.gaussian import Gaussian, Moments, distance, frechet

D, N, ROUNDS = 2048, 4096, 3
Ways = dict[str, Callable[[], float]]


def ways(m: Moments, reference: Gaussian, features: np.ndarray) -> Ways:
    S, R = m.covariance, reference.covariance
    shift = m.mean - reference.mean
    around = shift @ shift + np.trace(S) + np.trace(R)
    return {
        "ours": lambda: distance(m, reference),
        "ours_with_error": lambda: frechet(features, reference)[0],
        "eigenvalues": lambda: float(around - 2 * np.sqrt(np.linalg.eigvals(S @ R).astype(complex)).real.sum()),
        "square_root": lambda: float(around - 2 * np.trace(scipy.linalg.sqrtm(S @ R)).real),
    }


def test_distance(benchmark: BenchmarkFixture) -> None:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(D, D)) / D**0.5
    x, y = ((rng.normal(size=(N, D)) @ mixing + shift).astype(np.float32) for shift in (0.0, 0.1))
    torch.set_num_threads(1)
    with threadpool_limits(1):
        r = Moments.of(y)
        reference = Gaussian(r.mean, r.covariance, {})
        begin = time.perf_counter()
        assert reference.factor.shape == (D, D)
        once = time.perf_counter() - begin
        found = ways(Moments.of(x), reference, x)
        expected = found["ours"]()
        seconds: dict[str, list[float]] = {name: [] for name in found}
        for _ in range(ROUNDS):
            for name, way in found.items():
                begin = time.perf_counter()
                value = way()
                seconds[name].append(time.perf_counter() - begin)
                assert value == pytest.approx(expected, rel=1e-6)
        benchmark.pedantic(found["ours"], rounds=ROUNDS)
    medians = {name: median(times) for name, times in seconds.items()}
    ratios = {f"{name}_over_ours": medians[name] / medians["ours"] for name in ("eigenvalues", "square_root")}
    benchmark.extra_info.update(medians | ratios | {"factor_once": once, "d": D, "n": N})
    print("\n" + ", ".join(f"{name} {number:.2f}" for name, number in benchmark.extra_info.items()))
