"""What may be said of a checkpoint beside its place: `path(option=value, ...)`."""

from collections.abc import Mapping

from bench.errors import UsageError
from solvers import Option, did_you_mean

COMMON: dict[str, type] = {"resolution": int, "variant": str, "prediction": str}


def check_options(name: str, options: Mapping[str, Option], accepted: Mapping[str, type] = COMMON) -> None:
    """Raises UnknownNameError for an option that this checkpoint has not, UsageError for a value of another type."""
    for option, value in options.items():
        if option not in accepted:
            raise did_you_mean(f"option of checkpoint {name}", option, sorted(accepted))
        wanted = accepted[option]
        fits = isinstance(value, int | float) if wanted is float else isinstance(value, wanted)
        if not fits or isinstance(value, bool) != (wanted is bool):
            raise UsageError(f"{name}: {option}={value!r} is not of type {wanted.__name__}")


def word(options: Mapping[str, Option], name: str) -> str | None:
    """A textual option that is given, or None."""
    return str(options[name]) if name in options else None
