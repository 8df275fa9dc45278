"""Counter-based noise: the draws of sample i are a pure function of (seed, stream, i), whatever the batch or machine.

Philox4x64 (Salmon et al. 2011) gives four 64-bit words a counter; each sample owns a fixed block of counters and each
word becomes one number, a normal one by the inverse distribution function, so every sample spends the same draws.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

LATENT, LABEL, STEP = 0, 1, 2  # streams: the start, the class, and from STEP on one stream a noise draw
TUNING = 2**33  # added to a stream: what methods learn from is never what they are judged on


def uniform(seed: int, stream: int, start: int, count: int, width: int) -> NDArray[np.float64]:
    """Numbers in (0, 1) for samples start .. start + count - 1: (count, width)."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be an integer in [0, 2^64), not {seed}")
    counters = math.ceil(width / 4)
    key = np.array([seed, stream], np.uint64)
    words = np.random.Philox(counter=start * counters, key=key).random_raw(count * counters * 4)
    fractions = ((words >> np.uint64(11)) + 0.5) * 2.0**-53
    return np.ascontiguousarray(fractions.reshape(count, counters * 4)[:, :width])


def normal(seed: int, stream: int, start: int, count: int, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Standard normal draws for samples start .. start + count - 1: (count, *shape)."""
    return np.asarray(ndtri(uniform(seed, stream, start, count, math.prod(shape))).reshape(count, *shape))
