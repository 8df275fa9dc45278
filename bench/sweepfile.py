"""Sweep files: YAML, with includes, for one checkpoint or several, and what the command line sets, become Sweeps.

Every value remembers the line that it was written in through all merging, so that a refusal can name it.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, ValidationError

import solvers
from bench.checkpoints import CHECKPOINTS
from bench.errors import UsageError
from bench.spec import Latency, Settings, Sweep, Window, axis, listed, one_of
from bench.yamlfile import DEEPEST, Node, read_yaml

SUCH_AS = {
    "latency": "{rounds: 9}, or true or false",
    "quality": "{metric: fid, low: 2.0, high: 2.2}",
    "overrides": "{gmm: {nfe: [5, 11]}}",
}
Model = TypeVar("Model", bound=Settings)


class SweepFile(Settings):
    """What a sweep file may hold."""

    checkpoint: axis(one_of(CHECKPOINTS.builtin)) = ("digits",)
    """A name, file, folder or hub:owner/name; of several, each is swept into a folder of its own."""
    overrides: dict[str, Settings] = Field(default_factory=dict)
    """By checkpoint, what it alone wants otherwise."""
    include: Annotated[tuple[str, ...], BeforeValidator(listed, json_schema_input_type=str | list[str])] = ()
    """Sweep files, relative to this one, to begin with: later ones and this one's own keys win."""


def read_sweeps(path: Path | None, given: Mapping[str, Any]) -> tuple[Sweep, ...]:
    """The sweeps of a YAML file (or the default one), a checkpoint each, with what is `given` in place of its keys.

    Mappings are merged key by key, everything else is replaced.  Raises UsageError naming the key and its line.
    """
    known: dict[Path, Node] = {}
    file = _opened(path, (), known) if path else Node({})
    ours = _complete(Node.of(given), Path(), (), known)
    written = _validated(SweepFile, ours.over(file))
    _check_overrides(written, file, ours)
    return tuple(_validated(Sweep, _alone(name, file, ours)) for name in written.checkpoint)


def schema() -> dict[str, Any]:
    """The JSON schema of sweep files, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | SweepFile.model_json_schema()


def _opened(path: Path, above: tuple[Path, ...], known: dict[Path, Node]) -> Node:
    """A file on top of what it includes; `above` are the files that include it, `known` those that were read before."""
    here = Path(os.path.realpath(path))  # which, unlike Path's, has an answer for a link to itself
    if here not in known:
        known[here] = _complete(read_yaml(path), path.parent, (*above, here), known)
    return known[here]


def _complete(node: Node, folder: Path, above: tuple[Path, ...], known: dict[Path, Node]) -> Node:
    """A mapping on top of the files in `folder` that it includes."""
    included = Node({})
    for name in node.listed("include"):
        where = f"{name.place}: " if name.place else ""
        if not isinstance(name.value, str):
            raise UsageError(f"{where}include = {name.plain()!r}: give a file, or a list of files")
        path = folder / name.value
        if not os.path.isfile(path):  # which, unlike Path's, has an answer for names that no file can have
            raise UsageError(f"{where}include = {name.value!r}: there is no file {path}")
        if path.resolve() in above:
            raise UsageError(f"{where}include = {name.value!r}: {path} includes this file in its turn")
        if len(above) > DEEPEST:
            raise UsageError(f"{where}include = {name.value!r}: {len(above)} files include one another above it")
        included = _opened(path, above, known).over(included)
    return node.without("include").over(included)


def _alone(checkpoint: str, *layers: Node) -> Node:
    """What is written for a checkpoint in layers, of which later ones win: for all, and over it for this one."""
    node = Node({})
    for layer in layers:
        own = layer.value.get("overrides", Node({})).value.get(checkpoint, Node({}))
        node = own.over(layer.without("checkpoint", "overrides").over(node))
    return Node({"checkpoint": Node(checkpoint)} | node.value)


def _check_overrides(written: SweepFile, file: Node, ours: Node) -> None:
    """Raises UsageError for checkpoints that are overridden and not swept, nor left out by the command line alone."""
    known = dict.fromkeys([*written.checkpoint, *(name.value for name in file.listed("checkpoint"))])
    for name in written.overrides:
        if name not in known:
            place = ours.over(file).place_of(("overrides", name))
            unknown = solvers.did_you_mean("checkpoint", name, [str(k) for k in known])
            raise UsageError((f"{place}: " if place else "") + f"overrides: {unknown}")


def _validated(kind: type[Model], node: Node) -> Model:
    """The model that is written; raises UsageError for the first thing wrong with it."""
    try:
        return kind.model_validate(node.plain())
    except ValidationError as error:
        first = error.errors()[0]
        place = node.place_of(first["loc"])
        words = [part for part in first["loc"] if isinstance(part, str)]
        raise UsageError((f"{place}: " if place else "") + _refusal(kind, words, first)) from None


def _refusal(kind: type[Settings], words: Sequence[str], error: Mapping[str, Any]) -> str:
    """What is wrong with a key's value, in pydantic's words where they serve."""
    *inside, last = words
    key = ".".join(words)
    if error["type"] == "extra_forbidden":
        known = {"latency": Latency, "quality": Window}.get(inside[-1], Settings) if inside else kind
        unknown = solvers.did_you_mean("key", last, list(known.model_fields))
        return ".".join(inside) + ": " * bool(inside) + str(unknown)
    value = shorten(repr(error["input"]), 200, placeholder=" …")
    if error["type"] == "missing" and isinstance(place := error["loc"][-1], int):
        return f"{key} = {value}: value {place + 1} is missing"
    if error["type"] == "missing":
        return f"{key} is missing: {value}"
    if error["type"] in ("model_type", "dict_type"):
        return f"{key} = {value}: give a mapping such as {SUCH_AS.get(last, SUCH_AS['overrides'])}"
    if error["type"] == "too_short":
        return f"{key} = {value}: give one or more"
    return f"{key} = {value}: {error['msg'].removeprefix('Value error, ')}"
