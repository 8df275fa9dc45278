"""The HTML page as a reader has it: in a real browser, from a file, by mouse and by keyboard, wide and narrow."""

import re
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from bench.report.page import write_page
from tests.bench.page_runs import HOSTILE, write_run
from tests.browser.conftest import Open

IMAGE = "<img src=x onerror='window.hit = 1'>"
WINDOW = {"metric": "frechet_digits", "low": 0.5, "high": 60.0}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two runs: one with images, and one with a window, without images, whose names are hostile."""
    folder = tmp_path_factory.mktemp("page")
    many = [f"solver_{i}" for i in range(12)]
    stores = [
        write_run(folder / "digits", solvers=("ddim", "unipc", "dpmpp_2m", *many), nfe=(2, 5, 10)),
        write_run(folder / "other", HOSTILE, [IMAGE, "<b>bold"], shape=None, quality=WINDOW),
    ]
    return write_page(stores, folder / "page.html")


def column(page: Page, number: int) -> list[str]:
    return page.locator(f"#board tbody tr td:nth-child({number})").all_inner_texts()


def values(page: Page) -> list[float]:
    return [float(re.sub(r"[★=,\s]", "", text).partition("±")[0]) for text in column(page, 3)]


def show_all(page: Page) -> None:
    page.locator("#leaderboard .dt-length select").select_option("-1")


def pictures(page: Page) -> list[str]:
    return [str(image.get_attribute("src")) for image in page.locator("#tiles img").all()]


def marks(page: Page, chart: str, kind: str) -> int:
    return page.locator(f"#{chart} svg .mark-{kind} path").count()


def test_the_board_sorts_by_numbers(opened: Open, path: Path) -> None:
    page = opened(path)
    show_all(page)
    head = page.locator("#board thead th", has_text="value")
    head.click()
    expect(head).to_have_attribute("aria-sort", "ascending")
    rising = values(page)
    assert len(rising) == 46
    assert rising == sorted(rising)
    assert [f"{x:g}" for x in rising] != sorted(f"{x:g}" for x in rising)  # as text the order is another
    head.click()
    expect(head).to_have_attribute("aria-sort", "descending")
    assert values(page) == rising[::-1]


def test_at_first_budgets_rise_and_the_best_of_each_leads(opened: Open, path: Path) -> None:
    page = opened(path)
    show_all(page)
    budgets, shown = [int(n) for n in column(page, 2)], values(page)
    assert budgets == sorted(budgets)
    assert all(a <= b for m, n, a, b in zip(budgets, budgets[1:], shown, shown[1:], strict=False) if m == n)
    firsts = [budgets.index(n) for n in (1, 2, 5, 10)]
    stars = [k for k, text in enumerate(column(page, 3)) if "★" in text]
    assert stars == firsts


def test_filters(opened: Open, path: Path) -> None:
    page = opened(path)
    show_all(page)
    page.locator("#budget").select_option("5")
    assert set(column(page, 2)) == {"5"}
    expect(page.locator("#count")).to_have_text("15 of 46 rows")
    page.locator("#search").fill("PMPP")
    assert column(page, 1) == ["dpmpp_2m"]
    page.locator("#search").fill("")
    page.locator("#budget").select_option("all")
    page.locator("#kind").select_option("student")
    assert column(page, 1) == ["cd"]
    before = values(page)
    page.locator("#metric").select_option("precision")
    assert values(page) != before
    page.locator("#search").fill("no such solver")
    expect(page.locator("#board tbody")).to_have_text("nothing matches the filters")


def test_charts_show_every_cell_and_highlight_what_is_chosen(opened: Open, path: Path) -> None:
    page = opened(path)
    for chart in ("quality-chart", "pareto-chart", "truncation-chart"):
        page.wait_for_selector(f"#{chart} svg .mark-symbol path")
    assert marks(page, "quality-chart", "symbol") == 46
    assert marks(page, "pareto-chart", "symbol") > 46  # rings
    lines = page.locator("#quality-chart svg .mark-line path")
    assert lines.count() == 16
    loud = page.locator('#quality-chart svg .mark-line path[stroke-width="2.2"]')
    page.get_by_role("button", name="None", exact=True).click()
    expect(loud).to_have_count(0)
    page.get_by_role("checkbox", name="unipc").check()
    expect(loud).to_have_count(1)
    page.locator("#cost").select_option("memory")
    expect(page.locator("#pareto-chart svg")).to_contain_text("MiB")


def test_a_click_in_a_chart_highlights_and_pointing_says_what_it_is(opened: Open, path: Path) -> None:
    page = opened(path)
    page.get_by_role("button", name="None", exact=True).click()
    expect(page.locator('#quality-chart svg .mark-line path[stroke-width="2.2"]')).to_have_count(0)
    point = page.locator("#quality-chart svg .mark-symbol path").nth(3)
    point.hover(force=True)
    expect(page.locator("#vg-tooltip-element")).to_contain_text(re.compile(r", \d+ calls: .* ± "))
    point.click(force=True)
    expect(page.locator("#solvers input:checked")).to_have_count(1)


def test_the_slider_changes_pictures_by_keyboard(opened: Open, path: Path) -> None:
    page = opened(path)
    slider = page.get_by_role("slider", name="Network calls")
    slider.focus()
    page.keyboard.press("End")
    expect(page.locator("#calls-shown")).to_have_text("10 calls")
    assert slider.get_attribute("aria-valuetext") == "10 network calls"
    last = pictures(page)
    assert all(source.startswith("data:image/") for source in last)
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#calls-shown")).to_have_text("5 calls")
    assert pictures(page) != last
    image = page.locator("#tiles img").first
    assert re.fullmatch(r"Samples of \S+ at 5 network calls", image.get_attribute("alt") or "")
    assert image.evaluate("image => image.complete && image.naturalWidth") == 71
    page.keyboard.press("Home")  # the student's one call, which no other spends
    expect(page.locator("#tiles .missing").first).to_have_text("no cell at 1 calls")


def test_another_run_is_another_page_and_hostile_names_are_text(opened: Open, path: Path) -> None:
    page = opened(path)
    page.get_by_label("Checkpoint").select_option(index=1)
    assert {"cd", IMAGE, "<b>bold"} == set(column(page, 1))
    assert page.evaluate("window.hit") is None
    assert page.locator("#board b").count() == 0
    expect(page.locator("#provenance")).to_contain_text(f"no memory {HOSTILE}")
    expect(page.locator("#samples")).to_contain_text("No images were kept")
    assert not page.locator("#slide").is_visible()
    assert page.locator("#board s").count() > 0  # speeds outside the window
    for point in page.locator("#quality-chart svg .mark-symbol path").all()[:3]:
        point.hover(force=True)
        expect(page.locator("#vg-tooltip-element")).to_contain_text("calls:")
    assert page.locator("#vg-tooltip-element b, #vg-tooltip-element img").count() == 0
    assert page.evaluate("window.hit") is None


def test_injected_scripts_do_not_run(chromium: Browser, path: Path, tmp_path: Path) -> None:
    """Even where text were let in as HTML, the page's policy runs no script but its own."""
    text = path.read_text().replace("<main>", "<main><script>window.hit = 1</script><b onclick='window.hit = 1'>x</b>")
    (tmp_path / "changed.html").write_text(text)
    refused: list[str] = []
    page = chromium.new_page()
    page.on("console", lambda message: refused.append(message.text))
    page.goto((tmp_path / "changed.html").as_uri())
    page.get_by_text("x", exact=True).click()
    assert page.evaluate("window.hit") is None
    assert len([text for text in refused if "Content Security Policy" in text]) == 2
    page.close()


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("run", [0, 1])
def test_the_page_fits_its_window(opened: Open, path: Path, width: int, run: int) -> None:
    page = opened(path, width)
    page.get_by_label("Checkpoint").select_option(index=run)
    page.locator("summary:visible").click()
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    boxes = page.evaluate("""[...document.querySelectorAll("main *")].filter((element) => {
        const box = element.getBoundingClientRect();
        return box.width > 1 && box.right > innerWidth + 1 && !element.closest(".scroll");
    }).map((element) => element.outerHTML.slice(0, 200))""")
    assert boxes == []
    smallest = page.evaluate("""Math.min(...[...document.querySelectorAll("main *, header *")]
        .filter((element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
        .filter((element) => element.getClientRects().length)
        .map((element) => parseFloat(getComputedStyle(element).fontSize)))""")
    assert smallest >= 11


def test_every_control_is_reached_by_keyboard_and_seen(opened: Open, path: Path) -> None:
    page = opened(path)
    reached, outlines = set(), []
    for _ in range(120):
        page.keyboard.press("Tab")
        focus = page.evaluate("""(() => {
            const element = document.activeElement, style = getComputedStyle(element);
            const name = element.id || element.className || element.tagName;
            return [name, style.outlineStyle, parseFloat(style.outlineWidth)];
        })()""")
        reached.add(focus[0])
        if focus[0] != "BODY":
            outlines.append(focus)
    assert {"run", "metric", "budget", "kind", "search", "best", "clear", "find", "cost", "calls"} <= reached
    assert [focus for focus in outlines if focus[1] == "none" or focus[2] < 1] == []


@pytest.mark.parametrize(("width", "run"), [(400, 0), (1400, 1)])
def test_axe_finds_nothing_serious(opened: Open, path: Path, width: int, run: int) -> None:
    page = opened(path, width)
    page.get_by_label("Checkpoint").select_option(index=run)
    page.wait_for_timeout(300)
    found = Axe().run(page).response["violations"]
    serious = [(v["id"], v["nodes"][0]["html"][:200]) for v in found if v["impact"] in ("serious", "critical")]
    assert serious == []
