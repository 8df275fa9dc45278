"""The command that fails when something got worse."""

from pathlib import Path
from typing import Annotated

import typer

from bench.cli.app import app
from bench.cli.options import Device


@app.command()
def gate(
    files: Annotated[list[Path] | None, typer.Argument(help="Sweep files; without any, all of the baseline's.")] = None,
    baseline: Annotated[Path, typer.Option("--baseline", help="What was recorded, in one file.")] = Path(
        "baseline.json"
    ),
    update: Annotated[bool, typer.Option("--update", help="Record the baseline anew.")] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why; kept in the baseline.")] = "",
    golden: Annotated[
        list[Path] | None, typer.Option("--golden", help="With --update: recordings of official implementations.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Compare plans, numbers and speed ratios with a baseline.  Exit code 1 when something changed or got worse."""
    from bench.errors import UsageError
    from bench.forkserver import start_server
    from bench.gate.baseline import read_baseline, read_recordings, write_baseline
    from bench.gate.gate import Gate, named
    from bench.gate.show import print_change, recording_progress, run_gate
    from bench.gate.update import update as updated

    if update != bool(reason.strip()):
        raise UsageError("--update needs --reason TEXT" if update else f"--reason {reason!r}: give it with --update")
    if golden and not update:
        raise UsageError(f"--golden {golden[0]}: the baseline holds its recordings; give it with --update")
    start_server()  # so that its imports run beside ours
    sweeps = named(files or ())
    if not update:
        if not run_gate(Gate(read_baseline(baseline), device, sweeps or None)):
            raise typer.Exit(1)
        return
    before = read_baseline(baseline) if baseline.exists() else None
    recordings = {name: each for file in golden or () for name, each in read_recordings(file).items()}
    with recording_progress() as on_step:
        made = updated(before, sweeps, recordings, reason.strip(), device, on_step)
    write_baseline(baseline, made)
    print_change(baseline, made)
