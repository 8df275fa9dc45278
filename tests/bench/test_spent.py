"""Where time goes: what is counted for which part, and what is said of it."""

import time

import pytest
import torch
from torch import Tensor

from bench.progress import where_time_went
from bench.spent import Clock, Spent

CPU = torch.device("cpu")


def slow(x: Tensor, t: Tensor) -> Tensor:
    time.sleep(0.05)
    return x


def test_the_networks_share_of_a_solvers_time_is_the_networks() -> None:
    clock = Clock(CPU)
    network = clock.timed(slow)
    with clock.on("solver"):
        for _ in range(2):
            network(torch.ones(1), torch.ones(1))
        time.sleep(0.03)
    with clock.on("io"):
        time.sleep(0.02)
    spent = clock.spent
    assert spent.network >= 0.1
    assert 0.03 <= spent.solver < spent.network
    assert spent.io >= 0.02
    assert (spent.features, spent.distances, spent.startup) == (0, 0, 0)


def test_what_fails_has_taken_its_time() -> None:
    clock = Clock(CPU)

    def fails() -> None:
        with clock.on("distances"):
            time.sleep(0.01)
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert clock.spent.distances >= 0.01


def test_parts_add_up() -> None:
    one, two = Spent(network=1.0, solver=0.5, startup=2.0), Spent(network=3.0, io=0.25)
    assert one + two - one == two
    assert (one + two).total == 6.75
    assert (one + two).sampling == 4.75
    assert dict(two.rows())["io"] == 0.25


def test_a_sweep_says_where_its_time_went() -> None:
    spent = Spent(network=80.0, solver=2.0, features=10.0, distances=5.0, io=3.0, startup=1.0)
    first, second = where_time_went({"starting": 2.0, "sampling": 101.0}, spent).splitlines()
    assert first == "103.0 s: starting 2.0, sampling 101.0"
    assert second.endswith("startup 1.0; 10.0% beyond the networks of samples and features")
    assert len(where_time_went({"starting": 2.0}, Spent()).splitlines()) == 1
