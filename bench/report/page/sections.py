"""The parts of the page that are text: what was run, orders, students, tuning, citations, provenance."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isnan

import pandas as pd

from bench.checkpoints.manifest import as_published, entry
from bench.report.page.slopes import slopes_of
from bench.report.run import Run
from bench.report.scores import seeds_of, series_of
from bench.report.students import break_evens_of, images_until, of_trained
from bench.report.text import brief, counted, duration, listed, of_students, short_names, shown, with_error
from bench.store import Record, Store

SHORT = 12  # letters of a digest that name it
Names = Mapping[str, str]  # what solvers are called where there is little room


@dataclass(frozen=True)
class Grid:
    """A table of text; `numbers` says which columns stand to the right, `none` what is said of an empty one."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: tuple[int, ...] = ()
    none: str = ""


@dataclass(frozen=True)
class Sections:
    """What the page says of one run, part by part."""

    name: str
    facts: tuple[tuple[str, str], ...]
    orders: Grid
    trainings: Grid
    tunings: Grid
    break_even: Grid
    break_even_metric: str
    published: Grid
    machines: tuple[tuple[str, str], ...]
    commands: Grid
    failures: Grid
    keys: Grid


def sections_of(name: str, run: Run) -> Sections:
    names = short_names(run.board["solver"].unique())
    metric, even = _break_even(run.board, names)
    return Sections(
        name=name,
        facts=_facts(run),
        orders=_orders(run.board, names),
        trainings=_trainings(run.board, names),
        tunings=_tunings(run.board, names),
        break_even=even,
        break_even_metric=metric,
        published=_published(run, names),
        machines=_machines(run),
        commands=_commands(run.store),
        failures=_failures(run),
        keys=_keys(run, names),
    )


def _facts(run: Run) -> tuple[tuple[str, str], ...]:
    """What was run, in the words of the page's head."""
    definition, board = run.definition, run.board
    names, own = board["solver"].nunique(), board[of_students(board)]["solver"].nunique()
    done = [record["finished"] for record in run.records if "finished" in record]
    facts = (
        ("checkpoint", f"{definition['checkpoint']} ({definition['digest'][:SHORT]})"),
        ("solvers", f"{names - own}" + (f", and {counted(own, 'student')}" if own else "")),
        ("network calls", listed(board[~board["adaptive"]]["nfe"])),
        ("samples", f"{definition['samples']:,} a cell, {seeds_of(board.iloc[0]['score'])}"),
        ("guidance", listed(board["guidance"])),
        ("last cell", max(done)[:10] if done else ""),
    )
    return tuple(fact for fact in facts if fact[1])


def _orders(board: pd.DataFrame, names: Names) -> Grid:
    """Slopes of truncation error, steepest first."""
    lines = []
    for slope in slopes_of(board):
        found = "—" if isnan(slope.value) else with_error(slope.value, slope.se)
        lines.append((names[slope.solver], str(slope.order), found, f"{slope.first:g} to {slope.last:g}"))
    head = ("solver", "order of the method", "fitted slope", "over calls")
    return Grid(head, tuple(lines), (1, 2), "This run has no trajectory errors at two budgets or more.")


def _trainings(board: pd.DataFrame, names: Names) -> Grid:
    trained = board[of_trained(board)].drop_duplicates("solver")
    lines = []
    for about in trained.sort_values("solver").to_dict("records"):
        memory = about["training_memory_mib"]
        lines.append(
            (
                names[about["solver"]], about["training_method"], about["training_teacher"],
                brief(about["training_calls"]), duration(about["training_seconds"]),
                "—" if isnan(memory) else f"{memory:,.0f} MiB", about["training_device"],
            )
        )  # fmt: skip
    head = ("student", "method", "teacher", "calls", "time", "peak memory", "on")
    return Grid(head, tuple(lines), (3, 4, 5), "This run has no student whose training is known.")


def _tunings(board: pd.DataFrame, names: Names) -> Grid:
    tuned = board[board["tuning_calls"] > 0].drop_duplicates(["solver", "nfe"]).sort_values(["solver", "nfe"])
    lines = tuple(
        (names[row["solver"]], f"{row['nfe']:g}", brief(row["tuning_calls"]), row["tuning_base"] or "—",
         row["tuning_objective"] or "—")
        for row in tuned.to_dict("records")
    )  # fmt: skip
    head = ("solver", "calls", "spent on learning", "set out from", "made small")
    return Grid(head, lines, (1, 2), "This run has no solver that learned from the checkpoint.")


def _break_even(board: pd.DataFrame, names: Names) -> tuple[str, Grid]:
    """The metric, and for each student's cell the solver that is as good and the images after which it has paid."""
    metric, evens = break_evens_of(board)
    lines = []
    for even in evens:
        student, rival = even.student, even.rival
        start = (names[student["solver"]], f"{student['nfe']:g}", with_error(student["value"], student["se"]))
        if rival is None:
            lines.append((*start, "none at its guidance", "—", "—", "—", "—"))
            continue
        place = (names[rival["solver"]], f"{rival['nfe']:g}", with_error(rival["value"], rival["se"]))
        after = "no solver is as good" if isnan(even.calls) else images_until(even.calls)
        lines.append((*start, *place, after, images_until(even.seconds)))
    head = ("student", "calls", "value", "solver", "its calls", "its value", "images to break even", "by time")
    none = "This run has no student whose training is known."
    return (metric or ""), Grid(head, tuple(lines), (1, 2, 4, 5, 6, 7), none)


def _published(run: Run, names: Names) -> Grid:
    """FID that others report of the checkpoint, and this run's own where it has solvers of the same budgets."""
    found = entry(run.definition["checkpoint"])
    cited = found.published if found else ()
    budgets = sorted({nfe for about in cited for nfe in about.nfe})
    lines = []
    for about in cited:
        source = "; ".join(filter(None, (about.citation, about.note)))
        for solver, row in about.fid.items():
            values = dict(zip(about.nfe, row, strict=True))
            lines.append((solver, *(as_published(values.get(nfe)) for nfe in budgets), source))
    lines += _ours(run.board, names, budgets)
    head = ("solver", *map(str, budgets), "source")
    none = "The manifest cites no published numbers for this checkpoint."
    return Grid(head, tuple(lines), tuple(range(1, len(budgets) + 1)), none)


def _ours(board: pd.DataFrame, names: Names, budgets: Sequence[int]) -> Iterator[tuple[str, ...]]:
    rows = board[(board["metric"] == "fid") & board["nfe"].isin(budgets)]
    for name, of_solver in rows.groupby("solver", sort=True):
        text = {row.nfe: with_error(row.value, row.se) for row in of_solver.itertuples()}
        yield names[str(name)], *(text.get(nfe, "—") for nfe in budgets), "ours, measured in this run"


def _machines(run: Run) -> tuple[tuple[str, str], ...]:
    """Where and by what the numbers were made; several values where cells differ."""
    environments = [record["environment"] for record in run.records]
    versions: dict[str, set[str]] = {}
    for environment in environments:
        for name, version in environment.get("versions", {}).items():
            versions.setdefault(name, set()).add(str(version))
    definition = run.definition
    facts = {
        "folder": str(run.store.folder),
        "checkpoint's digest": definition["digest"],
        "device": _all(e["device"] for e in environments),
        "threads": _all(e["threads"] for e in environments),
        "commit": _all(e["commit"] for e in environments),
        "versions": ", ".join(f"{name} {' or '.join(sorted(of))}" for name, of in versions.items()),
        "measured against": "; ".join(definition.get("against", ())),
        "times measured": _sessions(run.board),
    }
    return tuple((name, text) for name, text in facts.items() if text)


def _all(values: Iterable[object]) -> str:
    return " or ".join(sorted({str(value) for value in values if value is not None}))


def _sessions(board: pd.DataFrame) -> str:
    if "session" not in board or not (timed := board[board["session"].notna()]).size:
        return "no"
    first = timed.iloc[0]
    where = f"{first['measured_on']}, {counted(first['measured_threads'], 'thread')}"
    return f"{where}, {listed(timed['rounds'])} rounds, in {counted(timed['session'].nunique(), 'session')}"


def _commands(store: Store) -> Grid:
    lines = tuple((run["started"], run["command"], run["environment"].get("commit") or "—") for run in store.runs())
    return Grid(("started", "command", "commit"), lines, none="No command was noted in this folder.")


def _failures(run: Run) -> Grid:
    """Cells that are not done: the last cause, or that they were not run yet."""
    done = {record["key"] for record in run.records}
    lines = []
    for key, (solver, nfe) in run.definition["cells"].items():
        if key not in done:
            causes = run.store.failures(key)
            lines.append((shown(solver), f"{nfe or 'adaptive'}", causes[-1]["cause"] if causes else "not run yet"))
    return Grid(("solver", "calls", "cause"), tuple(lines), (1,), "None: every cell of the sweep is done.")


def _keys(run: Run, names: Names) -> Grid:
    records = sorted(run.records, key=_place)
    lines = tuple(
        (names[series_of(r)], f"{r['cell']['nfe'] or 'adaptive'}",
         str(r["cell"]["seed"]), r["key"][:SHORT])
        for r in records
    )  # fmt: skip
    return Grid(("solver", "calls", "seed", "key"), lines, (1, 2))


def _place(record: Record) -> tuple[str, int, int]:
    cell = record["cell"]
    return cell["solver"], cell["nfe"] or 0, cell["seed"]
