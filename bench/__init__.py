"""The harness: what is swept, measured, stored and shown.  Imports solvers and distill.

`bench.sweep(...)` runs a sweep and gives its table, `bench.load(folder)` what notebooks show of results.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.scripting import Results, UsageError, load, sweep

__all__ = ["Results", "UsageError", "load", "sweep"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from bench import scripting  # torch and pandas take seconds to import

    return getattr(scripting, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
