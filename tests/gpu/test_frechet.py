"""The Frechet engine on a GPU gives what it gives on the CPU; skipped where there is no GPU."""

import numpy as np
import pytest
import torch

from bench.metrics.gaussian import Gaussian, Moments, distance, frechet, richardson

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.parametrize("n", [40, 300])  # fewer and more than features
def test_the_gpu_gives_the_cpus_numbers(n: int) -> None:
    rng, gpu = np.random.default_rng(0), torch.device("cuda")
    x, y = (rng.normal(size=(k, 64)).astype(np.float32) for k in (n, 500))
    m = Moments.of(y)
    reference = Gaussian(m.mean, m.covariance, {})
    value, influence = frechet(x, reference)
    on_gpu, its_influence = frechet(x, reference, gpu)
    assert on_gpu == pytest.approx(value, rel=1e-10)
    np.testing.assert_allclose(its_influence, influence, atol=1e-9 * np.abs(influence).max())
    exact = 1e-9 if n > 64 else 1e-7  # of eigenvalues that are 0 in truth, the roots of rounding errors are summed
    assert distance(Moments.of(x, gpu), reference, gpu) == pytest.approx(distance(Moments.of(x), reference), rel=exact)
    assert richardson(x, reference, value, gpu) == pytest.approx(richardson(x, reference, value), rel=1e-9)
