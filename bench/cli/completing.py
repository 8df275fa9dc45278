"""What shells complete values by: names, read where they are written down, since importing torch takes seconds."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

HOUSE = Path(__file__).parents[2]  # of bench, solvers and distill
CHECKPOINTS = HOUSE / "bench" / "checkpoints"
STUDENTS = CHECKPOINTS / "weights" / "students"
Completer = Callable[[str], list[str]]


def registered(*package: str) -> Iterator[str]:
    """The names in a package's Registry, by its source, and those that plug-ins add."""
    import ast
    from importlib.metadata import entry_points

    for node in ast.walk(ast.parse(HOUSE.joinpath(*package, "__init__.py").read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Registry":
            _, group, table = node.args
            if isinstance(table, ast.Dict):
                yield from ast.literal_eval(table)
                yield from (entry.name for entry in entry_points(group=ast.literal_eval(group)))


def solvers() -> Iterator[str]:
    """Solvers and students, which sweeps take alike."""
    yield from registered("solvers")
    yield from students()


def students() -> Iterator[str]:
    yield from sorted(path.parent.name for path in STUDENTS.glob("*/card.json"))
    yield from _in_manifest("students")


def checkpoints() -> Iterator[str]:
    yield from registered("bench", "checkpoints")
    yield from _in_manifest("checkpoints")


def metrics() -> Iterator[str]:
    yield from registered("bench", "metrics")


def methods() -> Iterator[str]:
    """Of distillation."""
    yield from registered("distill")


def tuned() -> Iterator[str]:
    """Solvers that learn."""
    yield from registered("solvers", "tune")


def published() -> Iterator[str]:
    """What can be pulled."""
    yield from _in_manifest("checkpoints")
    yield from _in_manifest("students")


def _in_manifest(section: str) -> Iterator[str]:
    """Names in the manifests, by their lines: parsing YAML would take as long as all the rest."""
    own = os.environ.get("FEWSTEP_MANIFEST")
    for path in ([Path(own)] if own else []) + [CHECKPOINTS / "manifest.yaml"]:
        within = ""
        for line in path.read_text().splitlines():
            if top := re.match(r"(\w+):", line):
                within = top[1]
            elif within == section and (name := re.match(r"  ([\w.-]+):", line)):
                yield name[1]


def lists() -> Iterator[str]:
    """What `fewstep ls` lists."""
    yield from ("solvers", "checkpoints", "students", "methods", "metrics")


def one(names: Callable[[], Iterator[str]]) -> Completer:
    """Completes one name."""
    return lambda incomplete: sorted({name for name in _readable(names) if name.startswith(incomplete)})


def several(names: Callable[[], Iterator[str]]) -> Completer:
    """Completes the last of the names between commas; nothing inside parentheses."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        if incomplete.count("(") > incomplete.count(")"):
            return []
        return [before + comma + name for name in one(names)(last)]

    return complete


def _readable(names: Callable[[], Iterator[str]]) -> list[str]:
    """All names, or none where a file of them cannot be read: a shell's prompt is no place to say why."""
    try:
        return list(names())
    except Exception:
        return []
