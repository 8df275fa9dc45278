"""`fewstep status --watch`: a live view of runs on a terminal, plain lines where there is none."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bench.log import Entry
from bench.store import Store
from bench.watched import Follower, State

PATIENCE = 10.0  # seconds without a process after which a watch that nobody sees ends: a sweep may be about to start
MOST = 6  # cells, failures and events that are shown at once
Draw = Callable[[Sequence[State]], None]
TOLD = {  # of the log's events those worth a line, and what they say
    "sweep_started": "sweep started: {pending} of {cells} cells to run, {engine}, workers: {workers}",
    "cell_done": "done: {label}",
    "cell_failed": "failed: {label}: {cause}",
    "set_aside": "set aside: {path}: {why}",
    "out_of_memory": "out of memory: goes on with {batch} samples at a time",
    "measuring_started": "measuring started",
    "measuring_ended": "measuring ended",
    "interrupted": "interrupted by {signal}",
    "sweep_ended": "sweep ended",
}


def watch(stores: Sequence[Store], every: float, console: Console, patience: float = PATIENCE) -> None:
    """Show what runs are at, every so many seconds, until all cells are done or failed, or Ctrl-C.

    Where nobody sees it, it ends too when for `patience` seconds no process has worked on them.
    Raises UsageError when a folder is none of results.
    """
    followers = [Follower(store) for store in stores]
    seen = console.file.isatty() and not console.is_dumb_terminal  # whatever colours were asked for
    worked = time.monotonic()
    with suppress(KeyboardInterrupt), (_screen if seen else _lines)(console) as draw:
        while True:
            states = [follower.state() for follower in followers]
            draw(states)
            if any(state.live for state in states):
                worked = time.monotonic()
            elif not any(state.left for state in states) or (not seen and time.monotonic() - worked >= patience):
                return
            time.sleep(every)


@contextmanager
def _screen(console: Console) -> Iterator[Draw]:
    with Live(console=console, auto_refresh=False) as live:
        yield lambda states: live.update(Group(*map(_picture, states)), refresh=True)


@contextmanager
def _lines(console: Console) -> Iterator[Draw]:
    """A line for each failure, and for each run whose state has changed but for its time left."""
    said: dict[object, object] = {}

    def say(line: str, about: object, now: object) -> None:
        if said.get(about) != now:
            said[about] = now
            console.print(printable(line), markup=False, highlight=False, soft_wrap=True)

    def draw(states: Sequence[State]) -> None:
        for state in states:
            for label, cause in state.failed:
                say(f"{state.folder}: failed: {label}: {cause}", (state.folder, label), cause)
            now = state.done, state.failed, state.begun, state.live, state.measuring
            say(f"{state.folder}: {'; '.join([_summary(state), *_begun(state)])}", state.folder, now)

    yield draw


def _begun(state: State) -> list[str]:
    return _some([f"{part.label}, {part.done:,} of {part.samples:,} samples" for part in state.begun])


def _summary(state: State) -> str:
    """Counts, speed and the time left, in a line."""
    said = [f"{state.done:,} of {state.wanted:,} cells done"]
    said += [f"{len(state.failed)} failed"] if state.failed else []
    if state.measuring:
        said.append("measuring")
    elif state.rate and state.seconds_left:
        said.append(f"{state.rate:,.0f} calls/s")
        said.append(f"{timedelta(seconds=round(state.seconds_left))} of sampling left")
    if not state.live and state.left:
        said.append(f"nothing runs: the same `fewstep sweep` goes on with the {state.left:,} left")
    return ", ".join(said)


def _picture(state: State) -> RenderableType:
    """A run: a bar over its cells, the cells that are begun, what failed, and what happened last."""
    bars, begun = Table.grid(padding=(0, 1)), _begun(state)
    bars.add_row(_bar(state.done, state.wanted), _text(_summary(state)))
    for part, line in zip(state.begun[:MOST], begun, strict=False):
        bars.add_row(_bar(part.done, part.samples), _text(line))
    lines = [_text(line) for line in begun[MOST:]]
    lines += [_text(f"failed: {line}", "red") for line in _some([": ".join(pair) for pair in state.failed])]
    told = [entry for entry in state.events if entry["event"] in TOLD]
    lines += [_text(_tell(entry), "dim") for entry in told[-MOST:]]
    return Group(_text(f"{state.folder}: {state.checkpoint}", "bold"), bars, *lines, "")


def _bar(done: int, of: int) -> ProgressBar:
    return ProgressBar(total=max(1, of), completed=done, width=24)


def _some(items: Sequence[str]) -> list[str]:
    """As many as are shown at once, and how many more there are."""
    return [*items[:MOST], *([f"and {len(items) - MOST:,} more"] if len(items) > MOST else [])]


def _tell(entry: Entry) -> str:
    """An event with its time, on the reader's clock."""
    clock = datetime.fromisoformat(entry["time"]).astimezone().strftime("%H:%M:%S")
    return f"{clock} {TOLD[entry['event']].format_map(_Known(entry))}"


class _Known(dict[str, Any]):
    """An event's fields, those that it lacks as question marks."""

    def __missing__(self, name: str) -> str:
        return "?"


def _text(text: str, style: str = "") -> Text:
    return Text(printable(text), style=style)


def printable(text: str) -> str:
    """Without what would move a terminal's cursor or break a line: names and causes come from anywhere."""
    return "".join(c if c.isprintable() else " " for c in text)
