"""The documentation: its examples run, its commands exist, its links lead somewhere, and no page asks another host."""

import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer
from playwright.sync_api import Browser

from bench import cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "results/README.md", *sorted(ROOT.glob("docs/**/*.md"))]
RUN = [ROOT / f"docs/how-to/own-{what}.md" for what in ("solver", "checkpoint", "metric", "student")]
FEW = {r"--samples \d+": "--samples 40", r"--steps \d+": "--steps 2", r"range\(1500\)": "range(3)"}
FENCE = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```', re.MULTILINE | re.DOTALL)
PLACE = re.compile(r"`((?:bench|solvers|distill|tests|docs|results)/[\w./-]+)`")
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)\s]*)?\)")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """Language, title and text of a page's fenced blocks."""
    return FENCE.findall(page.read_text())


def commands(page: Path) -> list[str]:
    """Lines of shell in a page's blocks, continued ones joined."""
    shell = [text for language, _, text in blocks(page) if language in ("", "sh", "bash", "console")]
    return [line for text in shell for line in text.replace("\\\n", " ").splitlines()]


def spelled(page: Path) -> list[list[str]]:
    """The command lines of fewstep in a page's blocks, without the program's name."""
    words = [shlex.split(line, comments=True) for line in commands(page) if re.match(r"(\.venv/bin/)?fewstep ", line)]
    return [line[1:] for line in words]


@cache
def program() -> typer.core.TyperGroup:
    group = typer.main.get_command(cli.app)
    assert isinstance(group, typer.core.TyperGroup)
    return group


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_parses(page: Path) -> None:
    commands_of = program().commands
    for words in spelled(page):
        assert words[0] in commands_of, f"fewstep {words[0]} is no command"
        commands_of[words[0]].make_context(words[0], words[1:])  # raises for an option it lacks, a value it refuses
    for text in re.findall(r"`fewstep ([^`\n]+)`", page.read_text()):
        words = text.split()
        assert words[0] in commands_of or words[0].startswith("--") or words[0].isupper(), f"fewstep {text}"
        taken = commands_of.get(words[0], program()).params
        options = {"--help", *(option for parameter in taken for option in parameter.opts)}
        assert {word for word in words if word.startswith("--")} <= options, f"fewstep {text}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_that_is_named_is_there(page: Path) -> None:
    text = FENCE.sub("", page.read_text())
    named = {ROOT / place for place in PLACE.findall(text) if not place.startswith("results/local-")}
    linked = {page.parent / target for target in LINK.findall(re.sub(r"`[^`\n]*`", "", text))}
    assert not [place for place in named | linked if not place.exists()]


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_how_tos_run_as_they_stand(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _, title, code in blocks(page):
        if title:
            (tmp_path / title).write_text(few(code))
    ran = [run(shlex.split(few(line)), monkeypatch) for line in commands(page)]
    assert ran
    assert all((tmp_path / out).is_dir() for words in ran if (out := out_of(words)))


def few(text: str) -> str:
    """The same with few samples and steps."""
    for many, less in FEW.items():
        text = re.sub(many, less, text)
    return text


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run a command line of fewstep or python in this process: importing torch takes most of a process of its own."""
    if words[:2] == ["python", "-c"]:
        exec(words[2], {})
    elif words[0] == "python":
        monkeypatch.syspath_prepend(Path.cwd())
        runpy.run_path(words[1])
    else:
        assert words[0] == "fewstep"
        monkeypatch.setattr(sys, "argv", [*words, *(["--set", "latency=false"] if words[1] == "sweep" else [])])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert not stopped.value.code, words
    return words


def out_of(words: list[str]) -> str:
    return words[words.index("--out") + 1] if "--out" in words else ""


def test_scripts_shown_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for page in (RUN[0], ROOT / "docs/reference/solvers.md"):
        for _, title, code in blocks(page):
            if title:
                (tmp_path / title).write_text(code)
    for script in ("check_mine.py", "use_solvers.py"):  # which measure the order that is declared, and count calls
        runpy.run_path(script)


def test_the_tutorial_shows_the_solver_of_the_how_to() -> None:
    shown = {page: dict(block[1:] for block in blocks(page))["mine.py"] for page in (ROOT / "docs/tutorial.md", RUN[0])}
    assert len(set(shown.values())) == 1


def test_what_concepts_print_is_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    (language, _, code), (_, _, shown), *_ = blocks(ROOT / "docs/concepts.md")
    assert language == "python"
    exec(code, {})
    assert capsys.readouterr().out == shown


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: a link, an anchor or a page that is missing fails here."""
    folder = tmp_path_factory.mktemp("site")
    made = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", folder], cwd=ROOT, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    return folder


class Assets(HTMLParser):
    """What a page makes a browser fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if tag == "link" and given.get("rel") in ("canonical", "next", "prev"):
            return
        source = given.get("href") if tag == "link" else given.get("src")
        self.found += [source] if source else []


def fetched(page: Path) -> Iterator[str]:
    reader = Assets()
    reader.feed(page.read_text())
    yield from reader.found


def test_no_page_fetches_from_another_host(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    assert not [(page.name, source) for page in pages for source in fetched(page) if "//" in source]
    assert not [css for css in site.rglob("*.css") if re.search(r"url\(['\"]?(https?:)?//", css.read_text())]


def test_pages_open_in_a_browser_without_a_network(site: Path, chromium: Browser) -> None:
    asked, wrong = [], []
    tab = chromium.new_page(viewport={"width": 400, "height": 800})
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    for name in ("index", "tutorial", "statistics", "reference/cli", "results/index"):
        tab.goto((site / f"{name}.html").as_uri(), wait_until="networkidle")
        assert tab.evaluate("document.documentElement.scrollWidth") <= 400, f"{name} is wider than the screen"
    tab.goto((site / "statistics.html").as_uri())
    equations = tab.locator("math").count()
    tab.close()
    assert not wrong
    assert equations > 20
    assert asked
    assert not [url for url in asked if url.startswith("http")]


def test_the_command_line_page_has_every_command_and_option(site: Path) -> None:
    text = (site / "reference/cli.html").read_text()
    for name, command in program().commands.items():
        assert f"fewstep {name}</code>" in text
        assert not [o for p in command.params for o in p.opts if o.startswith("--") and f"<code>{o}" not in text]
