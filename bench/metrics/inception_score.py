"""The inception score: how sure a classifier is of each sample, and how evenly it spreads them over its classes."""

import numpy as np
from scipy.special import rel_entr, softmax

from bench.errors import UsageError
from bench.metrics.base import Context, Features, Metric, Value
from bench.metrics.comparison import require

SEED = 2020  # of torch-fidelity's shuffle


class InceptionScore(Metric):
    """exp of the mean KL divergence from each sample's classes to those of all, mean over splits.

    Salimans et al. 2016, arXiv 1606.03498.  It falls short by about (classes - 1) / (2 N / splits) of itself, so it
    compares at equal N alone.  Its influence needs no term for the mean classes: their change cancels in the KL.
    """

    name, needs, better = "inception_score", "Inception weights, or features=digits_logits", "higher"

    def __init__(self, context: Context, features: str = "inception_logits", splits: int = 10) -> None:
        require(self.name, "splits", splits, 1)
        super().__init__(context, features)
        self.splits = splits

    def check(self, samples: int) -> None:
        if samples < 2 * self.splits:
            raise UsageError(f"inception_score: {samples} samples for {self.splits} splits: take {2 * self.splits}")

    def evaluate(self, features: Features, plan_times: tuple[float, ...]) -> list[Value]:
        n = len(features)
        order = np.random.RandomState(SEED).permutation(n)
        bounds = np.arange(self.splits + 1) * n // self.splits
        scores, influence = np.empty(self.splits), np.empty(n)
        for s in range(self.splits):
            part = order[bounds[s] : bounds[s + 1]]
            kl = divergences(features[part])
            scores[s] = np.exp(kl.mean())
            influence[part] = scores[s] * (kl - kl.mean()) * n / (len(part) * self.splits)
        settings = f"{self.splits} splits"
        return [self.value(scores.mean(), n, {"data": "none"}, influence=influence, settings=settings)]


def divergences(logits: Features) -> Features:
    """KL divergence of each row's classes from the mean of all, (N,), of logits (N, classes)."""
    p = softmax(logits.astype(np.float64), axis=1)
    return np.asarray(rel_entr(p, p.mean(0)).sum(1))
