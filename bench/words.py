"""Solvers and metrics as people write them: name, or name(option=value, ...), with commas between."""

import ast
import re
from collections.abc import Mapping
from itertools import product
from keyword import iskeyword
from math import isfinite
from typing import TYPE_CHECKING, Any

from bench.errors import UsageError

if TYPE_CHECKING:
    from solvers import Option  # with torch, for which completion has no time

COMMA = re.compile(r",(?![^()]*\))")  # between the items of a list, not inside an item's parentheses


def split_list(text: str) -> list[str]:
    """The items of a comma-separated list; commas inside parentheses belong to the item."""
    return [item.strip() for item in COMMA.split(text) if item.strip()]


def parse(kind: str, text: str) -> "tuple[str, dict[str, Option]]":
    """Name and options of `name` or `name(option=value, ...)`; raises UsageError.

    A first word without a name, as in `time_shift(ddim, ...)`, is the option `base`.
    """
    name, bracket, rest = text.strip().partition("(")
    if not bracket:
        return name, {}
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or rest[-1:] != ")":
            raise ValueError(text)
        if not all(isinstance(word, ast.Name) for word in call.args):
            raise ValueError(text)
        given = [*(("base", word) for word in call.args), *((k.arg, k.value) for k in call.keywords)]
        options = {str(k): _literal(value) for k, value in given if k}
        if len(options) < len(given):  # **options, or one of them twice
            raise ValueError(text)
        return name.strip(), options
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two for a thousand brackets
        raise UsageError(
            f"{kind} {text!r} is not of the form name or name(option=value, ...), with paths in quotes"
        ) from error


def spelled(name: str, options: "Mapping[str, Option]") -> str:
    """The text that `parse` takes for a name and its options."""
    return f"{name}({', '.join(f'{k}={_spelled(v)}' for k, v in options.items())})" if options else name


def _spelled(value: "Option") -> str:
    if isinstance(value, bool):
        return str(value).lower()
    plain = isinstance(value, str) and value.isascii() and value.isidentifier() and not iskeyword(value)
    return str(value) if plain and _literal(ast.Name(str(value))) == value else repr(value)


def choices(item: Any) -> list[Any]:
    """What {name: {option: value or [value, ...]}} stands for, one text a choice; anything else stands for itself.

    Raises ValueError.
    """
    if not isinstance(item, Mapping):
        return [item]
    if not item:
        raise ValueError("an empty mapping names none: give {name: {option: [value, value]}}")
    return [text for name, options in item.items() for text in _product(str(name), options)]


def _product(name: str, options: Any) -> list[str]:
    if "(" in name or not isinstance(options, Mapping | None):
        raise ValueError(f"{name!r} needs its options in a mapping: {{name: {{option: [value, value]}}}}")
    axes = {}
    for option, values in (options or {}).items():
        axes[option] = values if isinstance(values, list | tuple) else [values]
        if not axes[option]:
            raise ValueError(f"{name}: {option} has no value: give one or more")
        if bad := [v for v in axes[option] if not isinstance(v, bool | int | float | str) or not _finite(v)]:
            raise ValueError(f"{name}: {option} = {bad[0]!r}: give a number, a word, true or false")
        if not str(option).isidentifier() or iskeyword(str(option)):
            raise ValueError(f"{name}: {option!r} is not an option's name")
    return [spelled(name, dict(zip(axes, values, strict=True))) for values in product(*axes.values())]


def _finite(value: "Option") -> bool:
    return isinstance(value, str) or isfinite(value)


def _literal(node: ast.expr) -> "Option":
    if isinstance(node, ast.Name):  # words need no quotes, and YAML's booleans are words
        return {"true": True, "false": False}.get(node.id.lower(), node.id)
    value = ast.literal_eval(node)
    if not isinstance(value, bool | int | float | str):
        raise ValueError(value)
    return value
