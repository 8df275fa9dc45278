"""The command line, a module a group of commands.  Heavy imports stay inside commands: --help answers at once."""

from bench.cli import running, reading, comparing, explaining, preparing, scoring, exporting, keeping, gating  # noqa: F401, I001  # in the order in which --help shows them
from bench.cli.app import app, main

__all__ = ["app", "main"]
