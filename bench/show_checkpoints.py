"""What the command line prints of checkpoints: what is here, what can be pulled, and what a pull came to."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import students
from bench.checkpoints import CHECKPOINTS
from bench.checkpoints.bundle import BUNDLED, read_card
from bench.checkpoints.lock import default_lock
from bench.checkpoints.manifest import Entry, Source, as_published, entries, in_bytes, sources
from bench.checkpoints.pull import pull
from bench.distilled import SHIPPED, read_student, shipped
from bench.errors import UsageError
from distill.student import FewStep

COLUMNS = ("name", "where", "size", "image", "conditions", "licence", "what it is")


def print_pulls(name: str, lock: Path | None) -> None:
    """Pull all that a name needs; one line a source."""
    if name in CHECKPOINTS.names():
        raise UsageError(f"{name!r} comes with Fewstep or a plug-in: there is nothing to pull")
    for source in sources(name):
        pulled = pull(source, lock)
        did = "here already, verified" if pulled.before else "pulled and locked"
        print(f"{source.name}: {did}: {in_bytes(pulled.bytes)} in {pulled.path}; lock {lock or default_lock()}")


def print_checkpoints(verbose: bool) -> None:
    """All checkpoints, one a line; with `verbose`, source, recommended settings and published FID below each."""
    found, here = entries(), CHECKPOINTS.names()
    rows = [COLUMNS, *map(_of_package, here), *map(_row, found)]
    _print_table(rows, [[]] * (1 + len(here)) + [_more(entry) if verbose else [] for entry in found])
    print("`fewstep pull NAME` brings one; pull?: place, name or licence could not be looked up")


def print_students(verbose: bool) -> None:
    """Students, one a line: shipped, then published; with `verbose`, how each is sampled and made or found."""
    own = [(name, read_student(SHIPPED / name)) for name in shipped()]
    found = [students.entry(name) for name in students.names()]
    rows = [(name, "here", in_bytes(_bytes(SHIPPED / name)), "", f"{card['method']} of {card['teacher']['name']}")
            for name, card in own]  # fmt: skip
    rows += [(e.name, _where(e.source), _size(e.source), e.source.licence, e.about) for e in found]
    below = [[_how(FewStep.from_dict(card["sampler"])), _trained(card["training"])] for _, card in own]
    below += [[_sampled(entry), _address(entry.source)] for entry in found]
    lines = below if verbose else [[] for _ in rows]
    _print_table([("name", "where", "size", "licence", "what it is"), *rows], [[], *lines])


def _print_table(rows: Sequence[Sequence[str]], below: Sequence[Sequence[str]]) -> None:
    """Rows in columns, and the lines that belong below each."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row, lines in zip(rows, below, strict=True):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        for line in lines:
            print(f"    {line}")


def _of_package(name: str) -> tuple[str, ...]:
    """A checkpoint that needs no pulling."""
    if name not in CHECKPOINTS.builtin:
        return (name, "here", "", "", "", "", "a plug-in")
    return (name, "here", in_bytes(_bytes(BUNDLED / name)), "", "", "", str(read_card(BUNDLED / name)["data"]))


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _row(entry: Entry) -> tuple[str, ...]:
    told = "text" if entry.text else f"{entry.classes:,} classes" if entry.classes else ""
    source = entry.source
    return (entry.name, _where(source), _size(source), str(entry.resolution), told, source.licence, entry.about)


def _where(source: Source) -> str:
    return "here" if source.find() else "pull" if source.verified else "pull?"


def _size(source: Source) -> str:
    return "" if source.bytes is None else in_bytes(source.bytes)


def _address(source: Source) -> str:
    """Where a source comes from: on the hub with the revision, and what of it."""
    return source.address + (f"@{source.revision} {' '.join(source.patterns)}" if source.hub else "")


def _sampled(entry: students.StudentEntry) -> str:
    """What a student goes into, by which solver at which budgets it is sampled, and how it is guided."""
    kind = f"{students.KINDS[entry.kind]} for a {entry.base}" if entry.base else "a pipeline of its own"
    return f"{kind}; {_how(entry.sampler)}"


def _how(sampler: FewStep) -> str:
    """By which solver at which budgets a student is sampled, and how it is guided."""
    low, high = sampler.accepts
    guided = f"guidance {sampler.guidance:g}" + (f", {low:g} to {high:g} accepted" if low < high else "")
    return f"{sampler.solver} at {', '.join(map(str, sampler.trained_for))} calls; {guided}"


def _trained(training: Mapping[str, Any]) -> str:
    """What a student cost."""
    calls, steps = (f"{training[k]:,}" for k in ("calls", "steps"))
    return (
        f"{steps} steps, {calls} network evaluations of one sample, {training['seconds']:.0f} s on {training['device']}"
    )


def _more(entry: Entry) -> list[str]:
    """What there is to say of an entry below its row."""
    source, advice = entry.source, entry.recommended
    lines = [f"{_address(source)}, read by the loader {entry.loader}"]
    if entry.reference:
        lines.append(f"reference {entry.reference.name}: {entry.reference.url}")
    sampling = [f"{key} {value}" for key, value in (("t_end", advice.t_end), ("guidance", advice.guidance)) if value]
    sampling += [f"sigma {advice.sigma[0]:g} to {advice.sigma[1]:g}"] if advice.sigma else []
    sampling += [f"at {nfe} calls {solver}" for nfe, solver in advice.solvers.items()]
    if sampling or advice.note:
        lines.append("recommended: " + "; ".join([*sampling, *([advice.note] if advice.note else [])]))
    for published in entry.published:
        note = f"; {published.note}" if published.note else ""
        lines.append(f"FID at {', '.join(map(str, published.nfe))} calls, by {published.citation}{note}")
        for solver, row in published.fid.items():
            lines.append(f"    {solver}: {' / '.join(map(as_published, row))}")
    return lines
