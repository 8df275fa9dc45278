"""Metrics by name."""

import inspect
from collections.abc import Iterable
from typing import Any

from bench.errors import UsageError
from bench.metrics.base import Chunk, Context, Extractor, Features, Metric, Value
from bench.words import parse
from solvers import did_you_mean
from solvers.registry import Registry

METRICS = Registry(
    "metric",
    "fewstep.metrics",
    {
        "frechet_digits": "bench.metrics.frechet:FrechetDigits",
        "frechet_cifar10_jpeg": "bench.metrics.frechet:FrechetCIFAR10",
        "frechet_pixels": "bench.metrics.frechet:FrechetPixels",
        "frechet_exact": "bench.metrics.frechet:FrechetExact",
        "trajectory": "bench.metrics.trajectory:TrajectoryError",
        "fid": "bench.metrics.frechet:FID",
        "fid_clean": "bench.metrics.frechet:FIDClean",
        "fid_legacy_tf": "bench.metrics.frechet:FIDLegacyTF",
        "fid_legacy_pt": "bench.metrics.frechet:FIDLegacyPT",
        "fd_dinov2": "bench.metrics.frechet:FDDINOv2",
        "kid": "bench.metrics.kernel:KID",
        "mmd": "bench.metrics.kernel:MMD",
        "cmmd": "bench.metrics.kernel:CMMD",
        "energy": "bench.metrics.kernel:EnergyDistance",
        "prdc": "bench.metrics.neighbours:PRDC",
        "inception_score": "bench.metrics.inception_score:InceptionScore",
        "sliced_wasserstein": "bench.metrics.transport:SlicedWasserstein",
        "diversity": "bench.metrics.diversity:Diversity",
        "lpips": "bench.metrics.diversity:LPIPSDiversity",
    },
)


def options_of(kind: type[Metric]) -> dict[str, Any]:
    """The options of a metric with their defaults."""
    parameters = inspect.signature(kind).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def find_metric(text: str) -> tuple[type[Metric], dict[str, Any]]:
    """The class and the options of `name` or `name(option=value, ...)`; raises UsageError and UnknownNameError."""
    name, given = parse("metric", text)
    kind: type[Metric] = METRICS.get(name)
    if not (isinstance(kind, type) and issubclass(kind, Metric)):
        raise UsageError(f"metric {name!r} is no class of metrics: derive one from bench.metrics.Metric")
    known = options_of(kind)
    given = {k: float(v) if type(v) is int and type(known.get(k)) is float else v for k, v in given.items()}
    for option, value in given.items():
        if option not in known:
            raise UsageError(f"metric {text!r}: {did_you_mean('option', option, list(known) or ['none'])}")
        if type(value) is not type(known[option]):
            wanted = type(known[option]).__name__
            raise UsageError(f"metric {text!r}: {option}={value!r} is not of type {wanted}")
    return kind, given


def make_metric(text: str, context: Context) -> Metric:
    """The metric that `text` means, ready for samples of the context's checkpoint; raises as `find_metric`."""
    kind, given = find_metric(text)
    metric = kind(context, **given)
    unusual = {k: v for k, v in given.items() if v != options_of(kind)[k]}
    metric.label = f"({', '.join(f'{k}={v}' for k, v in sorted(unusual.items()))})" if unusual else ""
    return metric


def numbers_of(metrics: Iterable[Metric]) -> list[str]:
    """The names of the numbers that metrics may give together; raises UsageError for one that two would give."""
    names = [name for metric in metrics for name in metric.numbers]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"metrics: two of them give {twice[0]!r}: name each once, options at their defaults too")
    return names


__all__ = [
    "METRICS", "Chunk", "Context", "Extractor", "Features", "Metric", "Value", "find_metric", "make_metric",
    "numbers_of", "options_of",
]  # fmt: skip
