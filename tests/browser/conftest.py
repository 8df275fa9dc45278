"""Pages opened in a real browser as people do, from a file."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

Open = Callable[..., Page]


@pytest.fixture
def opened(chromium: Browser) -> Iterator[Open]:
    """Opens a file; the test fails when it says anything on the console or asks for anything but itself."""
    said: list[str] = []
    pages: list[Page] = []

    def open_page(path: Path, width: int = 1400) -> Page:
        page = chromium.new_page(viewport={"width": width, "height": 900})
        page.set_default_timeout(15_000)
        pages.append(page)
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
        page.goto(path.as_uri())
        page.wait_for_selector("#quality-chart svg")
        page.wait_for_selector("#board tbody tr")
        return page

    yield open_page
    for page in pages:
        page.close()
    assert said == []
