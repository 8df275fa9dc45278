"""A tiny sweep, what it leaves, and how often its network was asked for each state."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bench.store import Store
from tests.chaos import networks
from tests.chaos.nest import LOOK, PATIENCE, Nest, Process

BATCH, SAMPLES, BUDGETS = 32, 80, (4, 6)  # three blocks a cell, the last one smaller
PACE = 0.01  # seconds a call: so that sampling takes as long as what is around it
SOLVERS = ("ddim", "dpmpp_2m")
TIMING = ("finished", "environment")  # in a record, beside the seconds of sampling
CLOCKED = ("latency", "network", "solver_overhead", "best_batch", "throughput", "memory", "peak", "rounds", "measured",
           "session", "device", "threads", "commit", "speed")  # fmt: skip  # beginnings of a table's columns


@dataclass(frozen=True)
class Story:
    """A folder with the plug-in and, once it was run, the sweep's results."""

    nest: Nest
    folder: Path
    run_folder: Path  # as it is seen from here
    options: tuple[str, ...]

    @property
    def command(self) -> tuple[str, ...]:
        return (
            "sweep", "--checkpoint", f"networks.py:watched(pace={PACE})", "--solvers", ",".join(SOLVERS),
            "--nfe", ",".join(map(str, BUDGETS)), "--samples", str(SAMPLES), "--batch", str(BATCH), *self.options,
        )  # fmt: skip

    def start(self, *more: str, **world: list[Any]) -> Process:
        """Begin the sweep, or go on with it."""
        return self.nest.start(*self.command, *more, folder=self.folder, **world)

    def sweep(self, *more: str, **world: list[Any]) -> Process:
        """As `start`, to its end."""
        process = self.start(*more, **world)
        process.done()
        return process

    def ask(self, *arguments: str) -> Process:
        return self.nest.run(*arguments, folder=self.folder)

    def tell(self, fault: str, when: float) -> None:
        """Have the network fail in a way; see tests.chaos.networks."""
        (self.folder / f"fault-{fault}").write_text(str(when))

    def mend(self) -> None:
        """Take back all that it was told."""
        for fault in self.folder.glob("fault-*"):
            fault.unlink()

    def until(self, there: Callable[[], bool]) -> None:
        """Wait for something that its processes do."""
        end = time.monotonic() + PATIENCE
        while not there():
            assert time.monotonic() < end, "it never came"
            time.sleep(LOOK)

    def calls(self) -> list[dict[str, Any]]:
        """The network's calls, oldest first."""
        path = self.folder / networks.CALLS.name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def numbers(self) -> pd.DataFrame:
        """The table but for what clocks and machines put into it."""
        table = pd.read_parquet(self.run_folder / "table.parquet")
        return table[[name for name in table if not name.startswith(CLOCKED)]]

    def contents(self) -> dict[str, Any]:
        """All that the folder knows of its cells but for clocks and machines: records, and digests of sidecars."""
        store, found = Store(self.run_folder), {}
        for record in store.records():
            record = {name: value for name, value in record.items() if name not in TIMING}
            record["sampling"] = {"batch": record["sampling"]["batch"]}
            arrays = {name: (a.shape, a.tobytes()) for name, a in store.sidecar(record["key"]).items()}
            found[record["key"]] = record, arrays
        return found

    def whole(self) -> bool:
        """Whether nothing is left of work that was cut off."""
        left = [path.name for path in self.run_folder.iterdir()]
        return "chunks" not in left and "session.json" not in left


def story(nest: Nest, folder: Path, out: str = "run", seen: Path | None = None, measured: bool = False) -> Story:
    """A new one in a new folder, which writes to `out`, `seen` where it lies for this process."""
    folder.mkdir(parents=True)
    shutil.copy(networks.__file__, folder)
    options = ["--out", out, *(() if measured else ("--set", "latency=false"))]
    return Story(nest, folder, seen or folder / out, tuple(options))


def same(one: Story, other: Story) -> bool:
    """Raises AssertionError unless two stories came to the same tables, records and sidecars."""
    pd.testing.assert_frame_equal(one.numbers(), other.numbers(), check_exact=True)
    assert one.contents() == other.contents()
    return True


def asked(calls: list[dict[str, Any]]) -> Counter[tuple[float, str]]:
    """How often the network was asked for each state of each sample."""
    return Counter((call["t"], row) for call in calls for row in call["rows"])


def but_in_flight(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The calls less those of each process's last block: what it must not have lost when it was killed."""
    first, kept = max(call["t"] for call in calls), []
    for pid in dict.fromkeys(call["pid"] for call in calls):
        own = [call for call in calls if call["pid"] == pid]
        begun = max(i for i, call in enumerate(own) if call["t"] == first)
        kept += own[:begun]
    return kept
