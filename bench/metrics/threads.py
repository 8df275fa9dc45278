"""How many threads compute a number: one, since sums that are split among threads round differently for each count."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from threadpoolctl import ThreadpoolController


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch and every BLAS of this process on one thread, for as long as it lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _libraries().limit(limits=1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


@cache
def _libraries() -> ThreadpoolController:
    """Those loaded by now, scipy's own BLAS among them; to find them takes milliseconds."""
    import scipy.linalg  # noqa: F401

    return ThreadpoolController()
