"""The application that commands register with, and its entry point."""

import sys

import typer

app = typer.Typer(
    help="Compare fast diffusion samplers over budgets of network calls (NFE), with an error on every number.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Console entry point: bad input is one line on stderr and exit code 2, never a traceback."""
    try:
        sys.exit(app(standalone_mode=False))
    except typer.BadParameter.__mro__[1] as error:  # click's UsageError, which typer may have vendored
        _refuse(error.format_message())
    except (ValueError, LookupError) as error:
        if not _is_usage_error(error):
            raise
        _refuse(str(error))


def _refuse(message: str) -> None:
    print(f"fewstep: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _is_usage_error(error: Exception) -> bool:
    from bench.errors import UsageError
    from solvers import UnknownNameError

    return isinstance(error, UsageError | UnknownNameError)
