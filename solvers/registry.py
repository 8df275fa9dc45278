"""Names that resolve lazily: built-ins by table, plug-ins by entry point, anything else by `module:attribute`."""

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

PLUGIN = "fewstep_plugin_"  # what modules made of files are called, before the file's name


class UnknownNameError(LookupError):
    """A name that nothing is registered under; the message says what is near it."""

    def __str__(self) -> str:
        return str(self.args[0])


def did_you_mean(kind: str, name: str, known: list[str]) -> UnknownNameError:
    """The one-line error for an unknown `name`, naming the nearest known one and all the rest."""
    near = difflib.get_close_matches(name, known, 1, 0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UnknownNameError(f"unknown {kind} {name!r}: {hint}known: {', '.join(known)}")


@dataclass(frozen=True)
class Registry:
    """Objects of one kind by name; `builtin` maps a name to "module:attribute", `group` is the entry-point group.

    Nothing is imported before `get`, so listing names is cheap.
    """

    kind: str
    group: str
    builtin: Mapping[str, str]

    def names(self) -> list[str]:
        """Every registered name, built-ins first."""
        outside = [e.name for e in entry_points(group=self.group)]
        return [*self.builtin, *sorted(n for n in outside if n not in self.builtin)]

    def get(self, name: str) -> Any:
        """The object called `name`, or the one at "module:attribute" or "file.py:attribute".

        Raises UnknownNameError with the nearest known name.
        """
        if name in self.builtin:
            return _load(self.builtin[name])
        for entry in entry_points(group=self.group):
            if entry.name == name:
                return entry.load()
        if ":" in name:
            try:
                return _load(name)
            except (Exception, SystemExit) as error:  # a plug-in's own code may fail in any way
                raise UnknownNameError(f"unknown {self.kind} {name!r}: {type(error).__name__}: {error}") from error
        raise did_you_mean(self.kind, name, self.names())


def _load(path: str) -> Any:
    module, _, attribute = path.rpartition(":")
    if not module.endswith(".py"):
        return getattr(importlib.import_module(module), attribute)
    spec = importlib.util.spec_from_file_location(f"{PLUGIN}{Path(module).stem}", module)
    if spec is None or spec.loader is None:
        raise ImportError(f"{module} is not a Python file")
    loaded = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return getattr(loaded, attribute)
