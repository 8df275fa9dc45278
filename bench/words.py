"""Solvers and metrics as people write them: name, or name(option=value, ...), with commas between."""

import ast
import re

import solvers
from bench.errors import UsageError

COMMA = re.compile(r",(?![^()]*\))")  # between the items of a list, not inside an item's parentheses


def split_list(text: str) -> list[str]:
    """The items of a comma-separated list; commas inside parentheses belong to the item."""
    return [item.strip() for item in COMMA.split(text) if item.strip()]


def parse(kind: str, text: str) -> tuple[str, dict[str, solvers.Option]]:
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
    except (SyntaxError, ValueError) as error:
        raise UsageError(
            f"{kind} {text!r} is not of the form name or name(option=value, ...), with paths in quotes"
        ) from error


def _literal(node: ast.expr) -> solvers.Option:
    if isinstance(node, ast.Name):  # words need no quotes, and YAML's booleans are words
        return {"true": True, "false": False}.get(node.id.lower(), node.id)
    value = ast.literal_eval(node)
    if not isinstance(value, bool | int | float | str):
        raise ValueError(value)
    return value
