"""kill -9 at random moments, and the same command again: the same tables, and no work done twice but what was begun."""

import random
import signal
import time
from collections import Counter
from pathlib import Path

from tests.chaos.nest import Nest
from tests.chaos.stories import BATCH, Story, asked, but_in_flight, same, story


def test_the_harness_sees_every_call_once(whole: Story) -> None:
    """Else the tests below could not fail: 4 cells of 80 samples, 10 calls a sample and solver."""
    counts = asked(whole.calls())
    assert sum(counts.values()) == 2 * (4 + 6) * 80
    assert whole.whole()
    assert whole.calls()[0]["rows"] != whole.calls()[1]["rows"]


def test_killed_at_random_moments_nothing_is_lost_and_nothing_made_twice(
    forks: Nest, whole: Story, tmp_path: Path, long: bool
) -> None:
    moments = random.Random(7)
    kills, took, wanted, stories = 0, _seconds(forks, tmp_path), 100 if long else 12, 0
    while kills < wanted:
        told, stories = story(forks, tmp_path / f"story-{stories}"), stories + 1
        killed = 0
        while (process := told.start()).wait(moments.uniform(0, took)) is None:
            process.send(signal.SIGKILL)
            killed += 1
        assert process.code == 0, process.said()
        _check(told, whole, killed)
        kills += killed


def _seconds(forks: Nest, tmp_path: Path) -> float:
    """Of an uninterrupted run, by now."""
    began = time.monotonic()
    assert story(forks, tmp_path / "timed").sweep().code == 0
    return time.monotonic() - began


def _check(told: Story, whole: Story, kills: int) -> None:
    assert told.whole()
    assert same(told, whole)
    made, once = asked(told.calls()), asked(whole.calls())
    assert made.keys() == once.keys()
    assert asked(but_in_flight(told.calls())) <= once
    again = made - once
    assert sum(again.values()) <= kills * BATCH * 6
    assert once <= made
    assert isinstance(made, Counter)


def test_killed_at_every_write_in_turn(forks: Nest, whole: Story, tmp_path: Path) -> None:
    """Each run gets further by a file: before or behind the move that puts it into place."""
    told, write = story(forks, tmp_path / "told"), 1
    while (process := told.sweep(dies=[write])).code == -signal.SIGKILL:
        write += 1
    assert process.code == 0, process.said()
    assert write > 8, "too few writes to prove anything"
    _check(told, whole, write)
