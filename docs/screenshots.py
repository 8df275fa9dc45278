"""The pictures of the docs, made again: `python docs/screenshots.py`, about 10 minutes.

The tutorial's commands run as they are written, and leave its figures; the page is that of results/digits.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs/images"
FIGURES = {
    "tutorial-quality.png": "results/local-first/quality.png",
    "tutorial-comparison.png": "results/local-compared/comparison.png",
}
SECTIONS = {"page.png": "Leaderboard", "page-samples.png": "Samples"}  # by what the navigation calls them


def figures(folder: Path) -> None:
    """Those that the tutorial's commands leave in a folder."""
    text = (ROOT / "docs/tutorial.md").read_text()
    for title, code in re.findall(r'^```python title="([^"]+)"\n(.*?)^```', text, re.MULTILINE | re.DOTALL):
        (folder / title).write_text(code)
    lines = "".join(re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)).splitlines()
    commands = "\n".join(line for line in lines if ".venv" not in line)  # it is there already
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", "-e"], input=commands, text=True, cwd=folder, env={**os.environ, "PATH": path}, check=True)
    for name, made in FIGURES.items():
        shutil.copy(folder / made, IMAGES / name)


def screenshots(page: Path) -> None:
    """Of sections of the HTML page, as wide as a laptop."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1280, "height": 800})
        tab.goto(page.as_uri(), wait_until="networkidle")
        for name, section in SECTIONS.items():
            tab.get_by_role("navigation").get_by_role("link", name=section).click()
            if section == "Samples":
                for key in ("Home", "ArrowRight", "ArrowRight"):  # a budget that students have too
                    tab.get_by_role("slider").press(key)
            tab.wait_for_timeout(1000)  # until it has scrolled and drawn
            tab.screenshot(path=IMAGES / name)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / "report.html"
        fewstep = Path(sys.executable).with_name("fewstep")
        subprocess.run([fewstep, "report", ROOT / "results/digits", "--html", "--out", page], check=True)
        screenshots(page)
        figures(Path(scratch))


if __name__ == "__main__":
    main()
