"""Metrics by name."""

from bench.metrics.base import Chunk, Context, Features, Metric, Value
from solvers.registry import Registry

METRICS = Registry(
    "metric",
    "fewstep.metrics",
    {
        "frechet_digits": "bench.metrics.frechet:FrechetDigits",
        "frechet_pixels": "bench.metrics.frechet:FrechetPixels",
        "frechet_exact": "bench.metrics.frechet:FrechetExact",
        "trajectory": "bench.metrics.trajectory:TrajectoryError",
    },
)

__all__ = ["METRICS", "Chunk", "Context", "Features", "Metric", "Value"]
