"""The method cards: every registered name has one, and what a card says of it is what the code says."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import markdown
import pytest
from l2m4m import LaTeX2MathMLExtension

import distill
import solvers
from solvers.tracer import COMMON, LEARNING

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "methods"
OF_STUDENTS = "distillation.md"
FACTS = re.compile(r"^(?:Order|Samples by) `?(\w+)`? · (?:(.+?) prediction · .+? · )?options: (.+)$", re.MULTILINE)
ARXIV = re.compile(r"\b\d{4}\.\d{5}\b")


@dataclass(frozen=True)
class Section:
    """What a card says under a heading, and on the whole."""

    card: str
    name: str
    text: str
    page: str

    @property
    def facts(self) -> tuple[str, str, str]:
        """The order or the sampler, the prediction, the options."""
        found = FACTS.findall(self.text)
        assert len(found) == 1, self.name
        return found[0]


@cache
def sections() -> tuple[Section, ...]:
    found = []
    for path in sorted(FOLDER.glob("*.md")):
        page = path.read_text()
        for text in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
            found.append(Section(path.name, text.partition("\n")[0], text, page))
    return tuple(s for s in found if s.card != "index.md")


def of(name: str, student: bool = False) -> Section:
    (found,) = [s for s in sections() if s.name == name and (s.card == OF_STUDENTS) == student]
    return found


def written(options: dict[str, solvers.Option]) -> str:
    return ", ".join(f"`{k}={v}`" for k, v in options.items()) or "none"


@pytest.mark.parametrize("name", solvers.names())
def test_a_solver_is_what_its_card_says(name: str) -> None:
    method, (order, predicts, options) = solvers.method(name), of(name).facts
    declared = method.order(method.defaults) if callable(method.order) else method.order
    assert order == str(declared or "none")
    assert options == written({k: v for k, v in method.defaults.items() if k not in {**COMMON, **LEARNING}})
    if isinstance(method, solvers.Method):
        assert predicts == method.predicts


@pytest.mark.parametrize("name", distill.METHODS.names())
def test_a_distillation_method_is_what_its_card_says(name: str) -> None:
    method, (sampler, _, options) = distill.METHODS.get(name)(), of(name, student=True).facts
    assert options == written(method.options())
    if name != "boss":  # which has no sampler before its times are chosen
        assert sampler == method.sampler(solvers.EDM()).solver


def test_no_card_says_the_facts_of_what_there_is_not() -> None:
    stated = {(s.name, s.card == OF_STUDENTS) for s in sections() if FACTS.search(s.text)}
    assert stated == {(n, False) for n in solvers.names()} | {(n, True) for n in distill.METHODS.names()}


@pytest.mark.parametrize("name", solvers.names())
def test_a_card_cites_the_papers_that_the_solver_cites(name: str) -> None:
    assert set(ARXIV.findall(solvers.method(name).summary)) <= set(ARXIV.findall(of(name).page))


def test_cards_cite_no_paper_that_the_code_does_not_know() -> None:
    code = "".join(p.read_text() for folder in ("solvers", "distill", "bench") for p in (ROOT / folder).rglob("*.py"))
    cited = {n for path in FOLDER.glob("*.md") for n in ARXIV.findall(path.read_text())}
    assert cited <= set(ARXIV.findall(code))


def test_a_link_to_a_paper_goes_where_it_says() -> None:
    links = [
        m for path in FOLDER.glob("*.md") for m in re.findall(r"\[(?:arXiv )?([\d.]+)\]\((.+?)\)", path.read_text())
    ]
    assert links
    assert [url for number, url in links if url != f"https://arxiv.org/abs/{number}"] == []


def test_the_index_lists_every_method_with_its_order_and_card() -> None:
    rows = re.findall(
        r"^\| \[`(\w+)`\]\(([\w.]+)#(\w+)\) \| (\w+) \|(.*)$", (FOLDER / "index.md").read_text(), re.MULTILINE
    )
    first = [of(n).facts[0] for n in solvers.names()] + [of(n, True).facts[0] for n in distill.METHODS.names()]
    names = [*solvers.names(), *distill.METHODS.names()]
    assert [(name, anchor, stated) for name, _, anchor, stated, _ in rows] == list(
        zip(names, names, first, strict=True)
    )
    for name, card, _, _, rest in rows:
        section = of(name, student=card == OF_STUDENTS)
        assert section.card == card
        assert set(ARXIV.findall(rest)) & set(ARXIV.findall(section.page))


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.md")), ids=lambda path: path.name)
def test_all_mathematics_becomes_mathml(path: Path) -> None:
    """No dollar is left, no command that the converter does not know, nothing that Markdown took for its own."""
    html = markdown.markdown(path.read_text(), extensions=["tables", LaTeX2MathMLExtension()])
    plain = re.sub(r"<code>.*?</code>", "", html, flags=re.DOTALL)
    assert "<math" in plain
    assert not re.findall(r".{0,20}(?:[$\\\x02\x03]|klzzwxh|<em>\s*<math).{0,20}", plain)
