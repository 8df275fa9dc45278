"""The application that commands register with, and its entry point."""

import sys

import typer

LONGEST = 2000  # letters of a refusal

app = typer.Typer(
    help="Compare fast diffusion samplers over budgets of network calls (NFE), with an error on every number.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Console entry point: one line on stderr and never a traceback, with exit code 2 for bad input, and 1 where a disk
    takes nothing more."""
    try:
        sys.exit(app(standalone_mode=False))
    except typer.BadParameter.__mro__[1] as error:  # click's UsageError, which typer may have vendored
        _refuse(error.format_message())
    except (ValueError, LookupError) as error:
        if not _is_usage_error(error):
            raise
        _refuse(str(error))
    except OSError as error:
        if not _is_no_room(error):
            raise
        place = f"{error.filename}: " if error.filename else ""
        _refuse(f"{place}{error.strerror}; what was finished is kept, and the same command goes on", 1)


def _refuse(message: str, code: int = 2) -> None:
    print(f"fewstep: {_line(message)}", file=sys.stderr)
    sys.exit(code)


def _line(message: str) -> str:
    """One line that is safe to show: what would move a cursor or turn the writing round is escaped."""
    line = " ".join(message.split())
    if len(line) > LONGEST:
        line = f"{line[: LONGEST // 2]} … {line[-LONGEST // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def _is_no_room(error: OSError) -> bool:
    from bench.files import no_room

    return no_room(error) or isinstance(error, PermissionError)


def _is_usage_error(error: Exception) -> bool:
    from bench.errors import UsageError
    from solvers import UnknownNameError

    return isinstance(error, UsageError | UnknownNameError)
