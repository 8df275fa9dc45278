"""Cells that fail, hang and find no room: each leaves its cause and none keeps another from its numbers."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from bench.log import read_log
from bench.store import Store
from tests.chaos import world
from tests.chaos.nest import Nest
from tests.chaos.stories import SAMPLES, Story, same, story


@pytest.fixture
def told(forks: Nest, tmp_path: Path) -> Story:
    return story(forks, tmp_path / "told")


def _causes(told: Story) -> dict[str, str]:
    """The last causes of cells that failed, by solver."""
    paths = (told.run_folder / "attempts").glob("*.json")
    return {last["cell"]["solver"]: last["cause"] for last in (json.loads(path.read_text())[-1] for path in paths)}


def test_nan_at_a_step_is_told_with_the_step_and_the_rest_goes_on(told: Story, whole: Story) -> None:
    at = whole.calls()[1]["t"]
    told.tell("nan", at)
    process = told.sweep()
    assert process.code == 1
    cause = f"not finite: 1 of 32 samples, first in network call 2 of 4, at t = {at:g}"
    assert _causes(told) == {"ddim": cause}
    assert f"failed: gmm ddim nfe=4: {cause}" in process.said()
    assert len(list(Store(told.run_folder).records())) == 3
    told.mend()
    assert told.sweep().code == 0
    assert same(told, whole)


def test_a_smaller_batch_is_tried_where_memory_does_not_suffice(told: Story, whole: Story) -> None:
    told.tell("narrow", 10)
    assert told.sweep().code == 0
    _halved(told, 8)
    ours, theirs = told.numbers(), whole.numbers()
    np.testing.assert_allclose(ours["value"], theirs["value"], rtol=1e-5)
    assert (ours["n"] == SAMPLES).all()
    assert max(len(call["rows"]) for call in told.calls()[-40:]) <= 32


def test_a_smaller_batch_is_tried_where_the_system_gives_no_more(told: Story) -> None:
    told.tell("greedy", 100)
    assert told.sweep(memory=[2000]).code == 0
    _halved(told, 16)


def _halved(told: Story, batch: int) -> None:
    """What the log and the records say of it."""
    assert {record["sampling"]["batch"] for record in Store(told.run_folder).records()} == {batch}
    events = [entry for entry in read_log(told.run_folder) if entry["event"] == "out_of_memory"]
    assert [(entry["key"], entry["batch"]) for entry in events] == [
        (entry["key"], batch) for entry in read_log(told.run_folder) if entry["event"] == "cell_done"
    ], "once a cell"


def test_a_hang_costs_its_own_cell_alone(told: Story, whole: Story) -> None:
    told.tell("hang", whole.calls()[1]["t"])
    process = told.sweep("--timeout", "2")
    assert process.code == 1
    assert _causes(told) == {"ddim": "TimeoutError: it took longer than 2 s"}
    assert len(list(Store(told.run_folder).records())) == 3
    told.mend()
    assert told.sweep().code == 0
    assert same(told, whole)


def test_a_call_that_never_returns_costs_its_own_cell_alone(told: Story, whole: Story) -> None:
    """Python cannot interrupt it; the process that it is made in ends."""
    told.tell("deaf", whole.calls()[1]["t"])
    process = told.sweep("--timeout", "2")
    assert process.code == 1
    assert _causes(told) == {"ddim": "TimeoutError: it took longer than 2 s, in a call that does not return"}
    assert len(list(Store(told.run_folder).records())) == 3
    (attempt,) = (each for path in (told.run_folder / "attempts").iterdir() for each in json.loads(path.read_text()))
    assert "networks.py" in attempt["traceback"], "where it hung"
    told.mend()
    assert told.sweep("--timeout", "60", "--workers", "2").code == 0
    assert same(told, whole)


def test_a_crash_costs_its_own_cell_alone(told: Story, whole: Story) -> None:
    told.tell("crash", whole.calls()[1]["t"])
    process = told.sweep("--timeout", "60")
    assert process.code == 1
    assert _causes(told) == {"ddim": "ProcessDiedError: its process ended with exit code -6"}
    assert "Traceback" not in process.said()
    assert len(list(Store(told.run_folder).records())) == 3


def test_the_time_of_all_pieces_of_a_cell_counts(told: Story) -> None:
    """Each of its three blocks takes less."""
    process = told.sweep("--timeout", "0.1")
    assert process.code == 1
    assert len(_causes(told)) == 2
    assert 2 <= len(told.calls()) <= 4 * 12


def test_a_clock_that_jumps_changes_no_number(told: Story, whole: Story) -> None:
    process = told.sweep(clock=[0, -world.HOUR, world.YEAR, -world.YEAR])
    assert process.code == 0, process.said()
    assert same(told, whole)
    for record in Store(told.run_folder).records():
        assert 0 < record["sampling"]["seconds"] < 60
    elapsed = [entry["elapsed"] for entry in read_log(told.run_folder)]
    assert elapsed == sorted(elapsed)
    assert elapsed[-1] < 600
    assert "4 cells done, 0 failed, 0 left" in told.ask("status", "run").said()


def test_a_measuring_process_that_is_killed_costs_one_cell_its_measurement(forks: Nest, tmp_path: Path) -> None:
    told = story(forks, tmp_path / "told", measured=True)
    told.tell("wait", 0)
    process = told.start()
    told.until(lambda: bool(told.calls()))
    told.mend()
    told.until(lambda: len({call["pid"] for call in told.calls() if len(call["rows"]) == 1}) > 2)
    os.kill(told.calls()[-1]["pid"], signal.SIGKILL)
    code = process.done()
    measured = len(list((told.run_folder / "latency").iterdir()))
    assert (code, measured) in ((1, 3), (1, 0)), process.said()
    assert "its process ended with exit code -9" in process.said()
    assert told.sweep().code == 0
    assert len(list((told.run_folder / "latency").iterdir())) == 4
