"""Real processes to do harm to, and one run that nothing happened to."""

import pytest

from tests.chaos.nest import Nest
from tests.chaos.stories import Story, story


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="tests/chaos: 100 kills, and more of all else")


@pytest.fixture(scope="session")
def long(request: pytest.FixtureRequest) -> bool:
    """Whether there is time for more of the same."""
    return bool(request.config.getoption("--long"))


@pytest.fixture(scope="session")
def whole(forks: Nest, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """An uninterrupted run; not to be changed."""
    made = story(forks, tmp_path_factory.mktemp("chaos") / "whole")
    done = made.sweep()
    assert done.code == 0, done.said()
    return made
