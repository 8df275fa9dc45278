"""Disks that are full, folders that are not to be written: one line, what was finished is whole, and it goes on."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.store import Store
from tests.chaos.asked import changes, seen
from tests.chaos.disks import Disk, disk, mountable
from tests.chaos.nest import Nest, Process
from tests.chaos.stories import Story, asked, but_in_flight, same, story


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    if why := mountable():
        pytest.skip(f"no disk can be mounted in a namespace of its own here: {why}")
    with disk(tmp_path_factory.mktemp("small"), 8) as made:
        yield made


@pytest.fixture(autouse=True)
def _emptied(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test that failed has left of its ballast."""
    yield
    if "small" in request.fixturenames:
        request.getfixturevalue("small").empty()


def _on(small: Disk, folder: Path, name: str, measured: bool = False) -> Story:
    """A story whose results are on the disk, and nothing else of it."""
    return story(small.nest, folder, str(small.place / name), small.seen / name, measured)


def _ended_in_a_line(process: Process, code: int, why: str) -> None:
    said = process.said()
    assert process.code == code, said
    assert "Traceback" not in said
    assert re.search(rf"fewstep: (--out )?/?[^: ]+(: | is not writable: ){why}", said), said
    assert process.said().endswith("goes on") or code == 2


def test_a_disk_that_is_full_at_any_moment_loses_nothing(small: Disk, whole: Story, tmp_path: Path) -> None:
    """Each time there is a little more room than before, until there is enough."""
    told = _on(small, tmp_path / "told", "sampling")
    reached, codes = [], []
    for kib in (0, 4, 12, 24, 40, 64, 100, 200):
        small.leave(kib)
        process = told.sweep()
        codes.append(process.code)
        if process.code == 0:
            break
        _ended_in_a_line(process, process.code or 1, "No space left on device")
        reached.append(len(list(Store(told.run_folder).records())))
    assert codes[0] == 2, "nothing at all can be written"
    assert codes.count(1) >= 4
    assert reached == sorted(reached)
    small.empty()
    assert told.sweep().code == 0
    assert told.whole()
    assert same(told, whole)
    assert not (told.run_folder / "aside").exists(), "nothing was left half written"
    assert asked(but_in_flight(told.calls())) <= asked(whole.calls())


def test_a_disk_that_fills_up_while_the_report_is_written(small: Disk, whole: Story, tmp_path: Path) -> None:
    told = _on(small, tmp_path / "told", "report")
    told.tell("wait", 0)
    process = told.start()
    told.until((told.folder / "waits").exists)
    small.leave(130)  # for cells, and some of what is made of them
    told.mend()
    process.done()
    _ended_in_a_line(process, 1, "No space left on device")
    assert len(list(Store(told.run_folder).records())) == 4
    small.empty()
    assert told.sweep().code == 0
    assert asked(told.calls()) == asked(whole.calls())
    assert same(told, whole)


def test_a_disk_that_fills_up_in_a_measuring_session(small: Disk, tmp_path: Path) -> None:
    told = _on(small, tmp_path / "told", "measuring", measured=True)
    process = told.start()
    told.until((told.run_folder / "session.json").exists)
    small.leave(0)
    process.done()
    _ended_in_a_line(process, 1, "No space left on device")
    assert len(list(Store(told.run_folder).records())) == 4
    assert not (told.run_folder / "attempts").exists(), "no cell failed"
    small.empty()
    made = sum(len(call["rows"]) > 1 for call in told.calls())
    assert told.sweep().code == 0
    assert len(list((told.run_folder / "latency").iterdir())) == 4
    assert sum(len(call["rows"]) > 1 for call in told.calls()) == made, "no sample is made again"


def test_a_disk_that_turns_read_only(small: Disk, whole: Story, tmp_path: Path) -> None:
    told = _on(small, tmp_path / "told", "turned")
    process = told.start()
    told.until(lambda: len(told.calls()) > 12)
    process.send(signal.SIGKILL)
    small.mount("ro")
    try:
        before = seen(told.run_folder)
        refused = told.sweep()
        assert refused.code == 2
        assert refused.said().endswith(f"fewstep: --out {small.place}/turned is not writable: Read-only file system")
        assert "cells done" in told.ask("status", str(small.place / "turned")).said()
        assert changes(before, seen(told.run_folder)) == ()
    finally:
        small.mount("rw")
    assert told.sweep().code == 0
    assert same(told, whole)


def test_a_quota_that_is_used_up(forks: Nest, whole: Story, tmp_path: Path) -> None:
    """As no file may grow larger than so: what remains where no disk can be mounted."""
    told = story(forks, tmp_path / "told")
    process = told.sweep(files=[36])
    _ended_in_a_line(process, 1, "File too large")
    assert told.sweep().code == 0
    assert same(told, whole)


def test_a_folder_that_is_not_ours_is_refused_before_anything_is_made(forks: Nest, tmp_path: Path) -> None:
    told = story(forks, tmp_path / "told", "closed/run")
    (told.folder / "closed").mkdir(mode=0o555)
    before = seen(told.folder / "closed")
    process = told.sweep(no_capabilities=[])
    assert process.code == 2, process.said()
    assert process.said() == "fewstep: --out closed/run is not writable: Permission denied"
    assert changes(before, seen(told.folder / "closed")) == ()
    assert told.calls() == []


def test_a_folder_that_is_taken_from_us_half_way(forks: Nest, whole: Story, tmp_path: Path) -> None:
    told = story(forks, tmp_path / "told")
    told.tell("wait", 0)
    process = told.start(no_capabilities=[])
    told.until((told.folder / "waits").exists)
    ours = [told.run_folder, *(path for path in told.run_folder.rglob("*") if path.is_dir())]
    for folder in ours:
        folder.chmod(0o555)
    told.mend()
    process.done()
    _ended_in_a_line(process, 1, "Permission denied")
    for folder in ours:
        folder.chmod(0o755)
    assert told.sweep(no_capabilities=[]).code == 0
    assert same(told, whole)
