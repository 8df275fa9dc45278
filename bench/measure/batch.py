"""The batch of best throughput, found by doubling."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bench.causes import ran_out_of_memory

GAIN = 1.1  # of throughput; less does not pay for twice the latency, and clocks are noisy
PATIENCE = 2  # doublings without it before the search ends, since clocks are noisy and curves have steps


def doubling(cost: Callable[[int], float], largest: int) -> Iterator[dict[str, Any]]:
    """A point of the throughput curve for each batch 1, 2, 4, ... `largest`, then why it ended: {"stopped": ...}.

    `cost` gives the seconds of one call at a batch.  Memory that does not suffice for batch 1 is raised.
    """
    rates: list[float] = []
    batch = 1
    while True:
        try:
            seconds = cost(batch)
        except Exception as error:
            if batch == 1 or not ran_out_of_memory(error):
                raise
            yield {"stopped": f"out of memory at batch {batch}"}
            return
        rates.append(batch / seconds)
        yield {"batch": batch, "call_ms": seconds * 1e3, "samples_per_s": rates[-1]}
        if len(rates) > PATIENCE and max(rates[-PATIENCE:]) < GAIN * max(rates[:-PATIENCE]):
            yield {"stopped": "throughput grew no more"}
            return
        if batch == largest:
            yield {"stopped": f"max_batch = {largest}"}
            return
        batch = min(2 * batch, largest)


def best_of(curve: Sequence[dict[str, Any]]) -> int:
    """The smallest batch whose throughput is the best of the curve, but for the gain that does not pay."""
    best = max(point["samples_per_s"] for point in curve)
    return int(next(point["batch"] for point in curve if point["samples_per_s"] * GAIN > best))
