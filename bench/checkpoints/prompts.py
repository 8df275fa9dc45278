"""Prompts: a text file with one a line."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from bench.errors import UsageError
from bench.files import read_small, sha256


@dataclass(frozen=True)
class Prompts:
    """What samples are to show: sample i has prompt i, beginning again after the last one.

    `negative` is what guidance leads away from; the empty prompt, unless somebody wants to avoid something.
    """

    name: str
    lines: tuple[str, ...] = field(repr=False)
    negative: str = ""

    @cached_property
    def digest(self) -> str:
        """Of the prompts, not of their file's name."""
        return sha256(json.dumps([self.lines, self.negative]).encode())

    def of(self, start: int, count: int) -> Sequence[str]:
        """The prompts of samples start .. start + count - 1."""
        return [self.lines[i % len(self.lines)] for i in range(start, start + count)]

    def to_dict(self) -> dict[str, object]:
        """What records say of them."""
        return {"file": self.name, "n": len(self.lines), "negative": self.negative, "sha256": self.digest}


def read_prompts(path: Path, negative: str = "") -> Prompts:
    """The prompts of a UTF-8 text file, blank lines left out; raises UsageError when it has none."""
    try:
        lines = tuple(line.strip() for line in read_small(path).splitlines() if line.strip())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"prompts {path} cannot be read as text: {getattr(error, 'strerror', None) or error}"
        ) from error
    if not lines:
        raise UsageError(f"prompts {path} holds no line: give one prompt a line")
    return Prompts(path.name, lines, negative)
