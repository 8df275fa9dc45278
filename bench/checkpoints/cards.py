"""Cards for people: README.md beside the weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.checkpoints.bundle import read_card
from bench.files import write_text


def write_readme(folder: Path, title: str, command: str) -> None:
    """What card.json says, as Markdown, with the command that makes the weights again."""

    def lines(d: Mapping[str, Any], indent: str = "") -> list[str]:
        rows = []
        for key, value in d.items():
            label = f"{indent}- {key.replace('_', ' ')}:"
            shown = f"{value:.4g}" if isinstance(value, float) else value
            rows += [label, *lines(value, indent + "  ")] if isinstance(value, Mapping) else [f"{label} {shown}"]
        return rows

    head = [f"# Model card: {title}", "", f"Made again by `{command}`.", ""]
    write_text(folder / "README.md", "\n".join([*head, *lines(read_card(folder))]) + "\n")
