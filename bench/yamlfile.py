"""YAML whose every value knows its line."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench.errors import UsageError


@dataclass(frozen=True)
class Node:
    """A value, of which a mapping or a list holds nodes, and where it was written: file and line, "" for nowhere."""

    value: Any
    place: str = ""

    @classmethod
    def of(cls, value: Any) -> "Node":
        """A plain value, written nowhere."""
        if isinstance(value, Mapping):
            return cls({str(k): cls.of(v) for k, v in value.items()})
        return cls([cls.of(v) for v in value]) if isinstance(value, list | tuple) else cls(value)

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
    """SafeLoader, for which 1e-3 is a number, as it is for people and for YAML 1.2."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))


def read_yaml(path: Path) -> Node:
    """The mapping in a file; raises UsageError naming the line, also where a key stands twice."""
    try:
        return _node(*_root(path, path.read_text()), path)
    except (OSError, ValueError, RecursionError) as error:  # bytes that are no text, dates that are none, [[[[…
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"cannot read {path}: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"{path}{line}: not YAML: {getattr(error, 'problem', error)}") from error


def read_value(text: str) -> Any:
    """A value written in one line; raises yaml.YAMLError, ValueError or RecursionError."""
    return yaml.load(text, _Loader)  # a SafeLoader


def _root(path: Path, text: str) -> tuple[_Loader, yaml.Node]:
    """A file's mapping, of which no key stands twice, and what makes values of its nodes."""
    loader = _Loader(text)
    root = loader.get_single_node()
    if not isinstance(root, yaml.MappingNode):
        raise UsageError(f"{path} must hold a mapping with keys such as checkpoint, solvers, nfe")
    todo, seen = [root], set[int]()
    while todo:
        node = todo.pop()
        if id(node) in seen or isinstance(node, yaml.ScalarNode):
            continue
        seen.add(id(node))  # an alias is the same node, perhaps within itself
        if isinstance(node, yaml.MappingNode):
            _refuse_twice(path, node)
            todo += [value for _, value in node.value]
        else:
            todo += node.value
    return loader, root


def _refuse_twice(path: Path, node: yaml.MappingNode) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise UsageError(f"{path}, line {line}: a key must be a word")
        if key.value in lines:
            raise UsageError(f"{path}, line {line}: {key.value!r} stands here twice, first in line {lines[key.value]}")
        lines[key.value] = line


def _node(loader: _Loader, node: yaml.Node, path: Path, line: int = 1) -> Node:
    """What a node of YAML holds, written in a line: a key's value in the key's."""
    place = f"{path}, line {line}"
    if isinstance(node, yaml.MappingNode) and node.tag == loader.DEFAULT_MAPPING_TAG:
        loader.flatten_mapping(node)  # of its <<
        inside = {key.value: _node(loader, value, path, key.start_mark.line + 1) for key, value in node.value}
        return Node(inside, place)
    if isinstance(node, yaml.SequenceNode) and node.tag == loader.DEFAULT_SEQUENCE_TAG:
        return Node([_node(loader, item, path, item.start_mark.line + 1) for item in node.value], place)
    return Node(loader.construct_object(node, deep=True), place)
