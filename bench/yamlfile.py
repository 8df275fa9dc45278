"""YAML whose every value knows its line."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench.errors import UsageError
from bench.files import read_small

LARGEST = 2**18  # bytes of a file that somebody writes
STANDARD = "tag:yaml.org,2002:"
SCALARS = ("str", "int", "float", "bool", "null")
MOST, DEEPEST = 10_000, 32  # values in it, and mappings and lists within one another


@dataclass(frozen=True)
class Node:
    """A value, of which a mapping or a list holds nodes, and where it was written: file and line, "" for nowhere."""

    value: Any
    place: str = ""

    @classmethod
    def of(cls, value: Any, depth: int = 0) -> "Node":
        """A plain value, written nowhere; raises UsageError for one that is nested deeper than a file's may be."""
        if depth > DEEPEST:
            raise UsageError(f"a value is nested deeper than {DEEPEST} levels")
        if isinstance(value, Mapping):
            return cls({str(k): cls.of(v, depth + 1) for k, v in value.items()})
        return cls([cls.of(v, depth + 1) for v in value]) if isinstance(value, list | tuple) else cls(value)

    def plain(self) -> Any:
        """The value alone."""
        if isinstance(self.value, dict):
            return {k: node.plain() for k, node in self.value.items()}
        return [node.plain() for node in self.value] if isinstance(self.value, list) else self.value

    def over(self, base: "Node") -> "Node":
        """Itself in place of another; of two mappings, key by key."""
        if not (isinstance(self.value, dict) and isinstance(base.value, dict)):
            return self
        merged = {k: node.over(base.value[k]) if k in base.value else node for k, node in self.value.items()}
        return Node(base.value | merged, self.place)

    def without(self, *keys: str) -> "Node":
        """A mapping less some of its keys."""
        return Node({k: node for k, node in self.value.items() if k not in keys}, self.place)

    def listed(self, key: str) -> "list[Node]":
        """What a mapping holds under a key, one or several; none where it holds nothing."""
        node = self.value.get(key, Node([]))
        return list(node.value) if isinstance(node.value, list) else [node]

    def place_of(self, path: Sequence[str | int]) -> str:
        """Where the value at a path was written, or the nearest around it that is there."""
        if path and isinstance(self.value, dict) and path[0] in self.value:
            return self.value[path[0]].place_of(path[1:])
        if path and isinstance(self.value, list) and isinstance(path[0], int) and path[0] < len(self.value):
            return self.value[path[0]].place_of(path[1:])
        return self.place


class _Loader(yaml.SafeLoader):
    """SafeLoader, for which 1e-3 and 1.5e3 are numbers, as they are for people and for YAML 1.2; not for any depth."""

    depth = -1  # of the node that is read, the outermost at 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.depth == DEEPEST:
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, f"nested deeper than {DEEPEST} levels", mark)
        self.depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


_Loader.add_implicit_resolver(
    f"{STANDARD}float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(path: Path) -> Node:
    """The mapping in a file; raises UsageError naming the line, also where a key stands twice."""
    try:
        text = read_small(path, LARGEST)
    except (OSError, ValueError) as error:  # also of bytes that are no text
        raise UsageError(f"cannot read {path}: {error}") from error
    node = _read(text, str(path))
    if not isinstance(node.value, dict):
        raise UsageError(f"{path} must hold a mapping with keys such as checkpoint, solvers, nfe")
    return node


def read_value(text: str) -> Any:
    """A value written in one line; raises UsageError."""
    return _read(text, "the value").plain()


def _read(text: str, name: str) -> Node:
    """What a text called `name` holds; raises UsageError."""
    try:
        loader = _Loader(text)
        root = loader.get_single_node() or yaml.ScalarNode(f"{STANDARD}null", "")
        _check(name, root)
        return _node(loader, root, name)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"{name}{line}: not YAML: {getattr(error, 'problem', error)}") from error


def _check(name: str, root: yaml.Node) -> None:
    """Raises UsageError for a key that stands twice, and for more than people write: in depth, and in number.

    What an alias stands for is counted again, so that aliases of aliases and values within themselves end here.
    """
    todo, count = [(root, 0)], 0
    while todo:
        node, depth = todo.pop()
        if isinstance(node, yaml.ScalarNode):
            _check_text(name, node)
            continue
        count += len(node.value)
        if count > MOST:
            raise UsageError(f"{name} holds more than {MOST:,} values, those counted that aliases repeat")
        if depth == DEEPEST:
            raise UsageError(f"{name} is nested deeper than {DEEPEST} levels")
        if isinstance(node, yaml.MappingNode):
            _refuse_twice(name, node)
            todo += [(part, depth + 1) for pair in node.value for part in pair]
        else:
            todo += [(value, depth + 1) for value in node.value]


def _check_text(name: str, node: yaml.ScalarNode) -> None:
    try:
        node.value.encode()
    except UnicodeEncodeError:  # an escaped half of a pair, which nothing can write down again
        raise UsageError(f"{name}, line {node.start_mark.line + 1}: {node.value!r:.80} is no text") from None


def _refuse_twice(name: str, node: yaml.MappingNode) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise UsageError(f"{name}, line {line}: a key must be a word")
        if key.value in lines:
            raise UsageError(f"{name}, line {line}: {key.value!r} stands here twice, first in line {lines[key.value]}")
        lines[key.value] = line


def _node(loader: _Loader, node: yaml.Node, name: str, line: int = 1) -> Node:
    """What a node of YAML holds, written in a line: a key's value in the key's."""
    place = f"{name}, line {line}"
    if isinstance(node, yaml.MappingNode) and node.tag == loader.DEFAULT_MAPPING_TAG:
        loader.flatten_mapping(node)  # of its <<
        inside = {key.value: _node(loader, value, name, key.start_mark.line + 1) for key, value in node.value}
        return Node(inside, place)
    if isinstance(node, yaml.SequenceNode) and node.tag == loader.DEFAULT_SEQUENCE_TAG:
        return Node([_node(loader, item, name, item.start_mark.line + 1) for item in node.value], place)
    return Node(_scalar(loader, node, place), place)


def _scalar(loader: _Loader, node: yaml.Node, place: str) -> Any:
    """A number, a word, true, false or null; raises UsageError for anything else, also for what a tag would make."""
    kind = node.tag.removeprefix(STANDARD)
    if kind not in SCALARS or not isinstance(node, yaml.ScalarNode):
        shown = f"{node.value!r:.80}, " if isinstance(node, yaml.ScalarNode) else ""
        raise UsageError(
            f"{place}: {shown}a {kind}: give numbers, words (in quotes), true, false, null, lists or mappings"
        )
    try:
        value = loader.construct_object(node)
    except (ValueError, LookupError) as error:  # whatever a tag that the text does not fit makes of it
        raise UsageError(f"{place}: {node.value!r:.80} is no {kind}") from error
    if isinstance(value, int) and value.bit_length() > 64:
        raise UsageError(f"{place}: {node.value!r:.80} is beyond 2^64")
    return value
