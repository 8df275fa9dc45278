"""Measuring: solvers' time told apart from the network's, in fair rounds, whatever happens to the process."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import solvers
from bench.cell import Sampler
from bench.checkpoints import load
from bench.forkserver import FailedThereError, ProcessDiedError, branch, stream
from bench.measure.batch import best_of, doubling
from bench.measure.record import summaries, summary
from bench.measure.trial import Trajectory
from bench.measure.work import Begun, Failed, Round, Rounds, order, peaks, rounds
from bench.mode import Mode
from bench.spec import Cell
from tests.bench.costly import cells_of

CPU = torch.device("cpu")

# The batch of best throughput.


def test_throughput_that_levels_off_ends_the_search() -> None:
    *curve, end = doubling(lambda batch: 1 + batch / 16, 4096)
    assert end == {"stopped": "throughput grew no more"}
    assert [point["batch"] for point in curve] == [2**k for k in range(len(curve))]
    assert curve[4]["samples_per_s"] == pytest.approx(8)  # 16 in two seconds
    assert [best_of(curve), len(curve)] == [128, 10]  # 16 / (1 + 16 / 128) is within a tenth of what 512 give; 2 more


def test_one_slow_point_does_not_end_the_search() -> None:
    *curve, end = doubling(lambda batch: 3.0 if batch in (4, 16) else 1.0, 64)
    assert end == {"stopped": "max_batch = 64"}
    assert best_of(curve) == 64


def test_the_largest_batch_need_be_no_power_of_two() -> None:
    *curve, _ = doubling(lambda batch: 1.0, 100)
    assert [point["batch"] for point in curve] == [1, 2, 4, 8, 16, 32, 64, 100]


@pytest.mark.parametrize(
    "error",
    [MemoryError("no"), torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
    ids=["python", "GPU", "CPU"],
)
def test_memory_that_is_out_ends_the_search(error: Exception) -> None:
    def cost(batch: int) -> float:
        if batch > 8:
            raise error
        return 1.0

    *curve, end = doubling(cost, 4096)
    assert (best_of(curve), end) == (8, {"stopped": "out of memory at batch 16"})


@pytest.mark.parametrize(("error", "at"), [(ValueError("shape"), 4), (MemoryError("at once"), 1)])
def test_what_no_smaller_batch_mends_is_raised(error: Exception, at: int) -> None:
    def cost(batch: int) -> float:
        if batch == at:
            raise error
        return 1.0

    with pytest.raises(type(error), match=str(error)):
        list(doubling(cost, 64))


# Rounds.


@given(st.integers(0, 2**64 - 1), st.integers(-1, 40), st.integers(1, 40))
def test_a_rounds_order_is_a_function_of_the_seed(seed: int, number: int, count: int) -> None:
    names = [(str(k), 1) for k in range(count)]
    assert order(names, seed, number) == order(names, seed, number)
    assert sorted(order(names, seed, number)) == sorted(names)


def test_orders_differ_between_rounds_and_seeds() -> None:
    names = [(str(k), 1) for k in range(40)]
    assert len({tuple(order(names, seed, number)) for seed in range(5) for number in range(-1, 5)}) == 30


def events(checkpoint: str, some: list[Cell], plan: Rounds, batches: tuple[int, ...] = (1, 4)) -> Iterator[Any]:
    return rounds(checkpoint, some, CPU, torch.get_num_threads(), batches, plan)


def test_every_round_holds_every_trial_once_in_its_order() -> None:
    some = cells_of("gmm", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "dpm_solver_12")
    names = [(cell.key, batch) for cell in some for batch in (1, 4)]
    told = list(events("gmm", some, Rounds(seed=3, done=0, least=5, seconds=0)))
    finished = [event.trials for event in told if isinstance(event, Round)]
    assert [[(trial["name"], trial["batch"]) for trial in one] for one in finished] == [
        order(names, 3, number) for number in range(5)
    ]
    begun = [event.trial for event in told if isinstance(event, Begun)]
    assert begun == [name for number in range(-1, 5) for name in order(names, 3, number)]


def test_a_graph_is_captured_before_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in, which needs no GPU."""
    captured: list[int] = []

    class Graph:
        def __init__(self, plan: solvers.Plan, denoiser: solvers.Denoiser, x_T: torch.Tensor, cond: Any) -> None:
            captured.append(len(x_T))
            self.nfe, self.denoiser, self.x_T = plan.nfe, denoiser, x_T

        def __call__(self, x_T: torch.Tensor, noise: Any, cond: Any) -> torch.Tensor:
            self.denoiser.count(len(x_T), self.nfe, self.nfe)
            return x_T

    monkeypatch.setattr("bench.cell.CudaGraph", Graph)
    some = [replace(cell, mode=Mode(backend="cuda_graph")) for cell in cells_of("digits", "ddim")]
    finished = [e for e in events("digits", some, Rounds(0, done=0, least=5, seconds=0)) if isinstance(e, Round)]
    assert [len(e.trials) for e in finished] == [2] * 5
    assert sorted(captured) == [1, 4]


def test_rounds_done_before_are_not_run_again() -> None:
    some = cells_of("gmm")
    finished = [e for e in events("gmm", some, Rounds(0, done=3, least=5, seconds=0)) if isinstance(e, Round)]
    names = [(cell.key, batch) for cell in some for batch in (1, 4)]
    assert [[(t["name"], t["batch"]) for t in e.trials] for e in finished] == [order(names, 0, k) for k in (3, 4)]


def test_rounds_go_on_while_there_is_time_for_them() -> None:
    def count(seconds: float) -> int:
        told = events("gmm", cells_of("gmm"), Rounds(0, 0, 5, seconds))
        return sum(isinstance(event, Round) for event in told)

    assert [count(0.0), count(60.0)] == [5, 30]  # the most there are


def test_a_trial_that_raises_leaves_the_others_alone(plugin: str) -> None:
    checkpoint = f"{plugin}:failing_at_half"
    some = cells_of(checkpoint, "ddim", "ddim(t_start=0.5)")
    told = list(events(checkpoint, some, Rounds(0, 0, 5, 0)))
    [failed] = [event for event in told if isinstance(event, Failed)]
    assert failed.trial == (some[1].key, 1)
    assert failed.cause == "out of memory: no room for it"
    assert "networks.py" in failed.traceback
    last = [event for event in told if isinstance(event, Round)][-1]
    assert {trial["name"] for trial in last.trials} == {some[0].key}


# What a trial tells.


class Slow:
    """A sampler that is no plan and dawdles twice as long as `sleeping` takes, before each of three calls."""

    times, draws, nfe = (0.5, 0.1), 0, None

    def __init__(self, schedule: solvers.Schedule) -> None:
        self.schedule = schedule

    def run(self, denoiser: Any, x_T: Any, noise: Any, cond: Any) -> Any:
        for _ in range(3):
            time.sleep(0.008)
            denoiser.at_each(x_T, np.full(len(x_T), 0.5), "data", cond)
        return x_T


def trial(checkpoint: str, cell: Cell, batch: int = 4) -> Trajectory:
    sampler = Sampler(cell, load(checkpoint), CPU)
    made = Trajectory(sampler, *sampler.inputs(0, batch))
    made.warm()
    return made


def test_the_networks_time_is_the_networks(plugin: str) -> None:
    checkpoint = f"{plugin}:sleeping"
    made = trial(checkpoint, cells_of(checkpoint)[0])
    found = summary([made.run(k) for k in range(5)], 4)
    assert found["network_ms"] >= 5 * 4
    assert abs(found["overhead_ms"]) < found["network_ms"] / 2
    assert found["cpu_ms"] < found["median_ms"] / 2  # it sleeps
    assert found["samples_per_s"] == pytest.approx(4e3 / found["median_ms"])
    assert len(found["calls_ms"]) == len(found["steps_ms"]) == 5
    assert all(4 <= call <= step for call, step in zip(found["calls_ms"], found["steps_ms"], strict=True))
    assert 0.8 * found["median_ms"] < sum(found["steps_ms"]) < 1.2 * found["median_ms"]


def test_the_solvers_time_is_the_solvers(plugin: str) -> None:
    checkpoint = f"{plugin}:sleeping"
    [cell, _] = cells_of(checkpoint)
    object.__setattr__(cell, "plan", Slow(load(checkpoint).schedule))
    found = summary([trial(checkpoint, cell).run(k) for k in range(5)], 4)
    assert 1 < found["overhead_ms"] / found["network_ms"] < 4  # 3 x 8 over 3 x 4
    assert found["calls_ms"] == []


@pytest.mark.parametrize("number", [0, 1])
def test_bare_calls_make_the_forwards_that_the_interval_asks_for(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A count instead of a clock."""
    [cell] = cells_of("gmm", "ddim", guidance=2.0, guidance_interval=(0.0, 3.0), nfe=(8,))
    made, forwards = trial("gmm", cell), list[int]()

    def count(work: Any, device: torch.device) -> tuple[float, float]:
        before = made.denoiser.forwards
        work()
        forwards.append(made.denoiser.forwards - before)
        return 1.0, 1.0

    monkeypatch.setattr("bench.measure.trial.timed", count)
    made.run(number)
    assert forwards[0] == forwards[1]
    assert 8 < forwards[0] < 16


def test_summaries_are_of_rounds() -> None:
    one = {"name": "a", "batch": 1, "cpu_ms": 1.0, "network_ms": 8.0}
    told = [[one | {"total_ms": total}, {"name": "b"}] for total in (9.0, 10.0, 12.0, 11.0, 40.0)]
    [found] = summaries(told, "a")
    assert (found["median_ms"], found["iqr_ms"], found["overhead_ms"], found["network_ms"]) == (11, 2, 3, 8)
    assert found["overhead_iqr_ms"] == 2
    assert found["p90_ms"] == pytest.approx(28.8)
    assert found["rounds"]["total_ms"] == [9, 10, 12, 11, 40]


def test_what_an_autoencoder_takes_is_timed_apart(plugin: str) -> None:
    checkpoint = f"{plugin}:with_vae"
    [cell, _] = cells_of(checkpoint)
    told = [e.trials for e in events(checkpoint, [cell], Rounds(0, 0, 5, 0)) if isinstance(e, Round)]
    assert {(t["name"], t["batch"]) for t in told[0]} == {(name, b) for name in (cell.key, "vae") for b in (1, 4)}
    one, four = summaries(told, "vae")
    assert 0 < one["median_ms"] < four["median_ms"]
    assert "network_ms" not in one


# Processes.


def three(then: str) -> Iterator[int]:
    yield from range(3)
    if then == "raise":
        raise FloatingPointError("so it goes")
    if then == "die":
        os.kill(os.getpid(), signal.SIGKILL)


def pids() -> Iterator[int]:
    while True:
        yield os.getpid()


def heard(then: str) -> list[int]:
    return list(stream(three, then))


def test_a_process_tells_what_it_yields() -> None:
    assert heard("end") == [0, 1, 2]


def test_a_process_that_raises_says_why() -> None:
    with pytest.raises(FailedThereError, match="not finite: so it goes") as caught:
        heard("raise")
    assert "in three" in caught.value.traceback


def test_a_process_that_dies_is_noticed() -> None:
    told = stream(three, "die")
    assert [next(told) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ProcessDiedError, match="exit code -9"):
        next(told)


def test_a_process_ends_with_its_listener() -> None:
    told = stream(pids)
    pid = next(told)
    assert pid != os.getpid()
    told.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_branch_knows_what_its_process_does_and_says_how_it_ended() -> None:
    known = {"here": os.getpid()}

    def told(then: str) -> Iterator[Any]:
        yield os.getpid(), known["here"]
        yield from three(then)

    (pid, here), *rest = branch(told, "end")
    assert (here, rest) == (os.getpid(), [0, 1, 2])
    assert pid != here
    with pytest.raises(FailedThereError, match="not finite: so it goes"):
        list(branch(told, "raise"))
    with pytest.raises(ProcessDiedError, match="exit code -9"):
        list(branch(told, "die"))


@pytest.mark.parametrize(("then", "says"), [("raise", "not finite: so it goes"), ("die", "exit code -9")])
def test_a_branch_of_a_process_says_why_through_it(then: str, says: str) -> None:
    with pytest.raises(FailedThereError, match=says) as caught:
        list(stream(branch, three, then))
    assert ("in three" in caught.value.traceback) == (then == "raise")


def test_every_cell_s_memory_is_counted_afresh(plugin: str) -> None:
    checkpoint = f"{plugin}:allocating"
    some = cells_of(checkpoint, "ddim", "dpmpp_2m", "heun", nfe=(5,))
    found = list(stream(peaks, checkpoint, some, CPU, torch.get_num_threads(), 4))
    assert [key for key, _ in found] == [cell.key for cell in some]
    assert all(50 <= told["above_weights_mib"] < 90 for _, told in found)


def test_what_a_network_allocates_shows_in_memory(plugin: str) -> None:
    above = []
    for checkpoint in ("gmm", f"{plugin}:allocating"):
        [cell, _] = cells_of(checkpoint)
        [(key, found)] = stream(peaks, checkpoint, [cell], CPU, 1, 4)
        assert (key, found["of"], found["batch"]) == (cell.key, "peak resident set", 4)
        assert found["peak_mib"] > found["above_weights_mib"]
        above.append(found["above_weights_mib"])
    assert 40 < above[1] - above[0] < 70
