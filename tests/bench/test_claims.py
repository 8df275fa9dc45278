"""Claims on a folder's cells: one process has each, and a killed one has none."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from bench.claims import Claims

HOLDER = """
import sys, time
from pathlib import Path
from bench.claims import Claims
claims = Claims(Path(sys.argv[1]))
print([claims.take(name) for name in sys.argv[2:]], flush=True)
time.sleep(60)
"""


def holder(path: Path, *names: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path), *names], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == f"{[True] * len(names)}\n"
    return process


def test_what_one_process_has_another_does_not_get_until_it_is_killed(tmp_path: Path) -> None:
    other, ours = holder(tmp_path / "c", "a", "b"), Claims(tmp_path / "c")
    try:
        assert (ours.take("a"), ours.take("b"), ours.take("c")) == (False, False, True)
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert (ours.take("a"), ours.take("b")) == (True, True)
    finally:
        other.kill()
        ours.close()


def test_what_is_given_up_may_be_taken(tmp_path: Path) -> None:
    ours = Claims(tmp_path / "c")
    assert ours.take("a")
    ours.drop("a")
    other = holder(tmp_path / "c", "a")
    try:
        assert not ours.take("a")
    finally:
        other.kill()
        other.wait()
    with ours.hold("a"):
        pass
    ours.close()


def test_a_thousand_claims_are_one_empty_file(tmp_path: Path) -> None:
    ours = Claims(tmp_path / "c")
    assert all(ours.take(str(n)) for n in range(1000))
    assert os.stat(tmp_path / "c").st_size == 0
    ours.close()
