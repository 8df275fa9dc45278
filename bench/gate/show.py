"""What the gate prints."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.gate.baseline import Baseline
from bench.gate.gate import Check, Gate, Verdict

COLUMNS = {
    "plan": "plan",
    "quality": "quality, of the baseline's",
    "speed": "speed ratio, of the baseline's",
    "golden": "golden error",
}


def run_gate(gate: Gate) -> bool:
    """Run every check, show a table and a line for each that fails, and say whether none did."""
    console = Console()
    with TemporaryDirectory(prefix="fewstep-gate-") as scratch, Console(stderr=True).status("") as status:
        checks = gate.checks(Path(scratch))
        for check in checks:
            status.update(f"{check.kind} of {escape(check.subject)}")
            _ = check.verdict
    console.print(_table(checks))
    if gate.note:
        console.print(gate.note, markup=False, highlight=False, soft_wrap=True)
    faults = [f"{check.subject}: {check.kind}: {check.verdict.fault}" for check in checks if check.verdict.fault]
    for fault in faults:
        console.print(f"failed: {fault}", style="red", markup=False, highlight=False, soft_wrap=True)
    console.print(f"{len(checks) - len(faults)} of {len(checks)} checks hold", highlight=False)
    return not faults


def _table(checks: Sequence[Check]) -> Table:
    """A row for each cell and recording, a column for each kind of check that there is."""
    rows: dict[str, dict[str, Verdict]] = {}
    for check in checks:
        rows.setdefault(check.subject, {})[check.kind] = check.verdict
    kinds = [kind for kind in COLUMNS if any(kind in verdicts for verdicts in rows.values())]
    table = Table("", *(COLUMNS[kind] for kind in kinds), box=box.SIMPLE_HEAD)
    table.columns[0].no_wrap = True
    for subject, verdicts in rows.items():
        table.add_row(escape(subject), *(_word(verdicts.get(kind)) for kind in kinds))
    return table


def _word(verdict: Verdict | None) -> str:
    if verdict is None:
        return ""
    said = escape(verdict.said)
    return f"[red]{said} ✗[/red]" if verdict.fault else said


def print_change(path: Path, baseline: Baseline) -> None:
    """What an update changed."""
    change = baseline.history[-1]
    for line in change.changed:
        print(line)
    cells = sum(len(sweep.cells) for sweep in baseline.sweeps.values())
    print(f"wrote {path}: {cells} cells, {len(baseline.recordings)} recordings, {len(change.changed)} changed")


@contextmanager
def recording_progress() -> Iterator[Callable[[str], None]]:
    """What an update is at; gives on_step(text)."""
    with Console(stderr=True).status("") as status:
        yield lambda text: status.update(f"recording {escape(text)}")
