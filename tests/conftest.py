"""For all tests: the same examples of hypothesis every time, a cache that is nobody's, a browser, and processes."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.chaos.nest import Nest, nest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

settings.register_profile("fewstep", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("fewstep")
os.environ["FEWSTEP_CACHE"] = tempfile.mkdtemp(prefix="fewstep-cache-")


@pytest.fixture(scope="session")
def forks() -> Iterator[Nest]:
    """Processes of the command line that import nothing: most of a short one's time goes into importing torch."""
    with nest() as made:
        yield made


@pytest.fixture(scope="module")
def chromium() -> Iterator["Browser"]:
    """Chromium without a window, for one module: its event loop must not be there when notebooks run theirs."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium")
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("these tests need Chromium: install the package chromium")
        pytest.skip("no chromium on this machine")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
