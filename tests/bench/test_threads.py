"""Numbers are the same to the last bit on any number of threads, and what networks do has all of them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from bench.checkpoints import Task, digits, load
from bench.metrics import Chunk, Context, Features, Metric, Value, make_metric
from bench.metrics.threads import one_thread

METRICS = (
    "frechet_digits", "frechet_pixels", "kid(features=digits, size=200)", "prdc(features=digits)",
    "inception_score(features=digits_logits)", "energy", "mmd", "sliced_wasserstein", "diversity",
)  # fmt: skip
IMAGES = digits.real("train")[:600]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=[2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    with threadpool_limits(request.param):
        yield request.param
    torch.set_num_threads(before)


def context(folder: Path) -> Context:
    return Context(load("digits"), 0, Task(), folder, torch.device("cpu"))


def values(metric: Metric, images: np.ndarray = IMAGES) -> list[dict]:
    return [value.to_dict() for value in metric.compute(metric.extract(Chunk(0, None, images)), ())]


@pytest.mark.parametrize("name", METRICS)
def test_a_number_does_not_depend_on_the_threads(name: str, threads: int, tmp_path: Path) -> None:
    several = values(make_metric(name, context(tmp_path)))
    with one_thread():
        assert values(make_metric(name, context(tmp_path))) == several


def test_all_libraries_are_limited_and_let_go_again(threads: int) -> None:
    def now() -> tuple[int, set[int]]:
        return torch.get_num_threads(), {i["num_threads"] for i in threadpool_info() if i["user_api"] == "blas"}

    before, within = now(), list[tuple[int, set[int]]]()

    @one_thread()
    def fails() -> None:
        within.append(now())
        raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert within == [(1, {1})]
    assert now() == before
    assert before[0] == threads


class Watching(Metric):
    """Notes how many threads there are when it is asked for what."""

    name, needs = "watching", "nothing"

    def __init__(self, context: Context) -> None:
        super().__init__(context, "pixels")
        self.seen: list[tuple[str, int]] = []

    def prepare(self, features: Features, plan_times: tuple[float, ...]) -> None:
        self.seen.append(("prepare", torch.get_num_threads()))

    def evaluate(self, features: Features, plan_times: tuple[float, ...]) -> list[Value]:
        self.seen.append(("evaluate", torch.get_num_threads()))
        return []


def test_what_networks_do_has_all_threads_and_what_adds_up_has_one(threads: int, tmp_path: Path) -> None:
    metric = Watching(context(tmp_path))
    assert metric.compute(np.zeros((2, 64)), ()) == []
    assert metric.seen == [("prepare", threads), ("evaluate", 1)]


def test_a_reference_s_features_are_taken_with_all_threads(
    threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metric, seen = make_metric("frechet_digits", context(tmp_path)), list[int]()
    features = metric.extract(Chunk(0, None, IMAGES[:100]))
    extract = type(metric.extractor).extract

    def noted(self: object, chunk: Chunk) -> object:
        seen.append(torch.get_num_threads())
        return extract(self, chunk)

    monkeypatch.setattr(type(metric.extractor), "extract", noted)
    metric.compute(features, ())
    assert seen
    assert set(seen) == {threads}
