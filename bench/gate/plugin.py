"""The gate in pytest: `pytest --fewstep-gate=baseline.json` makes a test of every check.

Without paths on the command line the gate runs alone, with some beside the tests there.  With pytest-benchmark the
tests of speed show their trajectories in its tables too.  Nothing heavy is imported before the gate is asked for.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from bench.gate.gate import Check

NAME = "fewstep_gate"  # of the option, and of its line in pytest's configuration
PATH = pytest.StashKey[Path]()
SHOWN = 10  # rounds in pytest-benchmark's tables, which decide nothing


def pytest_addoption(parser: pytest.Parser) -> None:
    say = "a baseline of `fewstep gate`, each of whose checks becomes a test"
    group = parser.getgroup("fewstep")
    group.addoption("--fewstep-gate", dest=NAME, nargs="?", const="", metavar="FILE", help=f"{say}; default by ini")
    parser.addini(NAME, f"{say} where --fewstep-gate names none", default="")


def pytest_configure(config: pytest.Config) -> None:
    """Have the baseline collected, as one more path."""
    given = config.getoption(NAME)
    if given is None:
        return
    if config.getoption("numprocesses", None):
        raise pytest.UsageError("--fewstep-gate measures speed: run it without -n")
    path = Path(given or config.rootpath / config.getini(NAME))
    if not path.is_file():
        raise pytest.UsageError(f"--fewstep-gate: {path} is no file: give --fewstep-gate=FILE, or {NAME} = FILE in ini")
    config.args[:] = [*config.args, str(path)] if config.args_source is config.ArgsSource.ARGS else [str(path)]
    config.stash[PATH] = path.resolve()


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> "BaselineFile | None":
    if file_path != parent.config.stash.get(PATH, None):
        return None
    return BaselineFile.from_parent(parent, path=file_path)


class BaselineFile(pytest.File):
    """A baseline, whose checks are its tests."""

    def collect(self) -> Iterator[pytest.Item]:
        from bench.errors import UsageError
        from bench.gate.baseline import read_baseline
        from bench.gate.gate import Gate

        scratch = TemporaryDirectory(prefix="fewstep-gate-")
        self.config.add_cleanup(scratch.cleanup)
        try:
            checks = Gate(read_baseline(self.path)).checks(Path(scratch.name))
        except UsageError as error:
            raise self.CollectError(str(error)) from error
        shown = self.config.pluginmanager.hasplugin("benchmark")
        for check in checks:
            test = _benchmark(check) if check.kind == "speed" and shown else partial(_judge, check)
            yield pytest.Function.from_parent(self, name=f"{check.kind}[{check.subject}]", callobj=test)


def _judge(check: "Check") -> None:
    """Fail with the check's one line."""
    if fault := check.verdict.fault:
        pytest.fail(f"{check.subject}: {check.kind}: {fault}", pytrace=False)


def _benchmark(check: "Check") -> Callable[["BenchmarkFixture"], None]:
    def test(benchmark: "BenchmarkFixture") -> None:
        assert check.trajectory is not None
        benchmark.extra_info["ratio to a plain loop"] = check.verdict.said
        benchmark.pedantic(check.trajectory(), rounds=SHOWN, warmup_rounds=1)
        _judge(check)

    return test
