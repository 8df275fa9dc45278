"""What a metric is: features taken from chunks of samples, then numbers with their errors from all features."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.checkpoints.base import Checkpoint, Task, quantise
from bench.metrics.threads import one_thread
from bench.stats import Floats, Parts, parts_of, spread

Features = NDArray[Any]
Better = Literal["lower", "higher", "neither"]


@dataclass(frozen=True)
class Value:
    """One number: `n` samples behind it, its standard error, the family it may be compared within, its reference.

    `parts` are what consecutive blocks of samples add to it (bench.stats): with them differences are paired.
    `at_infinity` is the value extrapolated to infinitely many samples, with its standard error, where that is known.
    """

    metric: str
    value: float
    se: float
    n: int
    family: str
    reference: Mapping[str, Any]
    better: Better = "lower"
    parts: Parts = ()
    at_infinity: tuple[float, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        return vars(self) | {"parts": list(self.parts), "at_infinity": self.at_infinity and list(self.at_infinity)}


@dataclass(frozen=True)
class Chunk:
    """Samples start .. start + n - 1 of a cell: states x (n, *shape), or their bytes (n, C, H, W), or both."""

    start: int
    x: Tensor | None
    images: NDArray[np.uint8] | None

    @classmethod
    def of(cls, start: int, x: Tensor, checkpoint: Checkpoint) -> "Chunk":
        """These final states of the checkpoint, latents decoded; of vectors there are no images."""
        if checkpoint.kind == "vector":
            return cls(start, x, None)
        return cls(start, x, quantise(checkpoint.decode(x) if checkpoint.decode else x))

    def __len__(self) -> int:
        return len(self.images if self.x is None else self.x)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Context:
    """What a metric may need beyond samples: the checkpoint and what it is asked for, the start of the trajectories, a
    folder to cache in.

    `references` are the files or folders to compare with
    in place of the checkpoint's own data, `weights` the file or folder with the feature networks' weights.  What
    metrics share, such as a network, is made once by `shared`.
    """

    checkpoint: Checkpoint
    seed: int
    task: Task
    cache: Path
    device: torch.device
    references: tuple[str, ...] = ()
    weights: Path | None = None
    _made: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def shared(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` made the first time it was asked for under this key."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


class Extractor(ABC):
    """Takes one or more layers of features from a chunk of samples; `layers` are their registered names.

    `family` says within what its numbers compare: network, resize and the digest of its weights.
    """

    layers: ClassVar[tuple[str, ...]]
    needs: ClassVar[str]
    family: str

    def __init__(self, context: Context) -> None:
        """Cheap: networks are read when they are first used.  Raises UsageError when they cannot be."""
        self.context = context

    @abstractmethod
    def extract(self, chunk: Chunk) -> Mapping[str, Features]:
        """Features of a chunk by layer, each (m, d) with m <= n; chunks are joined along the first axis."""

    @abstractmethod
    def width(self, layer: str) -> int:
        """Features a sample has in a layer."""

    @classmethod
    def missing(cls, weights: Path | None) -> str | None:
        """In a few words, what this machine lacks to use it; None when nothing."""
        return None


class Metric(ABC):
    """One quantity; `name` is its registry name, `needs` says in a few words what it needs.

    Options are keyword arguments of `__init__` with defaults: `kid(features=digits, subsets=50)`.
    """

    name: ClassVar[str]
    needs: ClassVar[str]
    of_ode: ClassVar[bool] = False  # whether it means nothing for a sampler that draws noise on its way
    better: ClassVar[Better] = "lower"
    gives: ClassVar[tuple[str, ...]] = ()  # the names of its numbers, where they are not its own
    features: str  # the layer it looks at

    def __init__(self, context: Context, features: str) -> None:
        """Raises UsageError when the checkpoint cannot give what the metric needs, UnknownNameError for the layer."""
        from bench.metrics.features import extractor

        self.context = context
        self.features = features
        self.extractor: Extractor = extractor(context, features)
        self.label = ""  # what stands after its names: the options that are not the usual ones

    @property
    def identity(self) -> str:
        """What its numbers compare within, before any is known: enters the cell's key."""
        return self.extractor.family

    @classmethod
    def missing(cls) -> str | None:
        """In a few words, what this machine lacks for it beside its features; None when nothing."""
        return None

    @property
    def numbers(self) -> list[str]:
        """The names of the numbers that it may give."""
        return [name + self.label for name in self.gives or (self.name,)]

    def extract(self, chunk: Chunk) -> Features:
        """The features it looks at, of one chunk."""
        return self.extractor.extract(chunk)[self.features]

    def compute(self, features: Features, plan_times: tuple[float, ...]) -> list[Value]:
        """The metric's numbers from all features of a cell whose plan runs over these times.

        They are the same to the last bit on any number of threads.
        """
        self.prepare(features, plan_times)
        with one_thread():
            return self.evaluate(features, plan_times)

    def prepare(self, features: Features, plan_times: tuple[float, ...]) -> None:  # noqa: B027, most need nothing
        """Bring about what networks must compute first, which all threads may share."""

    @abstractmethod
    def evaluate(self, features: Features, plan_times: tuple[float, ...]) -> list[Value]:
        """What `compute` gives, once all is prepared."""

    def check(self, samples: int) -> None:  # noqa: B027, most metrics have nothing to check
        """Raises UsageError when so many samples give no number."""

    def warnings(self, samples: int) -> list[str]:
        """One line for each reason to doubt what comes out of so many samples."""
        return []

    def value(
        self,
        value: float,
        n: int,
        reference: Mapping[str, Any],
        *,
        influence: Floats | None = None,
        parts: Parts = (),
        name: str | None = None,
        better: Better | None = None,
        settings: str = "",
        at_infinity: tuple[float, float] | None = None,
    ) -> Value:
        """A number with its error, from each sample's influence (n,) or, where there is no formula, from parts.

        `settings` are what else must be alike for two numbers to compare; they join the extractor's family.
        """
        if influence is not None:
            se, parts = float(influence.std(ddof=1) / np.sqrt(len(influence))), parts_of(influence)
        else:
            se = spread(parts)
        metric = (name or self.name) + self.label
        family = f"{self.extractor.family}, {settings}" if settings else self.extractor.family
        return Value(metric, float(value), se, n, family, reference, better or self.better, parts, at_infinity)
