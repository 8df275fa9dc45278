"""What `fewstep compare` prints."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.compare import SAME, WORSE, Comparison
from bench.report.compared import HEAD, SPEEDS, about, about_speeds, lines_of, missing_lines, speed_lines, summary
from bench.stats import LEVEL

ROWS, FEW = 40, 5  # of what is told apart or missing; of what is within the noise, the worst
WIDTH = 170  # columns where the output is no terminal: rows are not to be folded


def print_comparison(found: Comparison) -> None:
    """What differs, worst first, whose speed does, what is missing, and one line on all; files hold the rest."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    several = len({score.place.run for score in found.scores}) > 1
    _print(console, about(found))
    apart = found.told_apart
    _print_table(console, HEAD, lines_of(apart, several), ROWS, red=len(found.of(WORSE)))
    _print_table(console, HEAD, lines_of(found.of(SAME), several), FEW)
    if found.speeds:
        _print(console, [about_speeds(found)])
        told = [speed for speed in found.speeds if speed.p < LEVEL]
        _print_table(console, SPEEDS, speed_lines(told, several), ROWS)
        _print(console, [] if told else ["No solver's time over its network calls is told apart."])
    missing = missing_lines(found)
    _print(console, missing[:ROWS])
    _print_rest(console, len(missing) - ROWS)
    console.print(summary(found), style="bold", markup=False, highlight=False)


def _print(console: Console, lines: Sequence[str]) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False)


def _print_table(
    console: Console, head: Sequence[str], lines: Sequence[Sequence[str]], most: int, red: int = 0
) -> None:
    """The first rows, if there are any, `red` of them so, and how many more there would be."""
    if not lines:
        return
    table = Table(*head)
    for i, line in enumerate(lines[:most]):
        table.add_row(*map(Text, line), style="red" if i < red else "")
    console.print(table)
    _print_rest(console, len(lines) - most)


def _print_rest(console: Console, more: int) -> None:
    if more > 0:
        console.print(f"… and {more} more, which --out FOLDER writes to comparison.md", highlight=False)
