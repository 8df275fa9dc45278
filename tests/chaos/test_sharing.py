"""Several processes on one results folder: each sample is made once, whoever makes it, and nobody stumbles."""

import json
import signal
from pathlib import Path

from tests.chaos.nest import Nest, Process
from tests.chaos.stories import Story, asked, but_in_flight, same, story


def _begin(told: Story, processes: int) -> list[Process]:
    """So many at once, held at their first network calls until all of them have noted that they run."""
    told.tell("wait", 0)
    begun, runs = [told.start() for _ in range(processes)], told.run_folder / "runs.json"
    told.until(lambda: runs.exists() and len(json.loads(runs.read_text())) == processes)
    told.until(lambda: len({call["pid"] for call in told.calls()}) == 4)  # a cell each; the others wait
    return begun


def test_eight_processes_make_each_sample_once(forks: Nest, whole: Story, tmp_path: Path) -> None:
    told = story(forks, tmp_path / "told")
    begun = _begin(told, 8)
    told.mend()
    assert [process.done() for process in begun] == [0] * 8, [process.said() for process in begun]
    assert asked(told.calls()) == asked(whole.calls())
    assert told.whole()
    assert same(told, whole)


def test_what_killed_processes_had_claimed_is_done_by_the_others(forks: Nest, whole: Story, tmp_path: Path) -> None:
    told = story(forks, tmp_path / "told")
    begun = _begin(told, 5)
    first = {call["pid"] for call in told.calls()[:2]}
    for process in begun:
        if process.pid in first:
            process.send(signal.SIGKILL)
    told.mend()
    assert sorted(process.done() for process in begun) == [-9, -9, 0, 0, 0], [process.said() for process in begun]
    assert asked(told.calls()) >= asked(whole.calls())
    assert asked(but_in_flight(told.calls())) <= asked(whole.calls())
    assert same(told, whole)
