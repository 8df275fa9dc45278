"""The leaderboard's LaTeX, read back by a parser of LaTeX: names letter by letter, the numbers of the Markdown."""

import re
import shutil
import subprocess
from pathlib import Path
from string import printable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pylatexenc.latex2text import LatexNodes2Text, MacroTextSpec, get_default_latex_context_db
from pylatexenc.latexwalker import LatexEnvironmentNode, LatexWalker

from bench.report.frame import tidy
from bench.report.latex import escaped, latex
from bench.report.leaderboard import leaderboard
from bench.report.scores import over_seeds
from tests.bench.test_rank import record

EVIL = r"a_b%c&d#e$f{g}~h^i\j<k>l|m"
ABOUT = {"checkpoint": "my_gmm\\input{x}", "digest": "d" * 64, "samples": 400}


def records() -> list[dict[str, Any]]:
    """Two budgets of `good`, `alike` and `worse`; a student, a tuned and an adaptive solver."""
    fixed = [record(solver, nfe, 0, "lower") for solver in ("good", "alike", "worse") for nfe in (5, 8)]
    student, tuned, adaptive = (
        record(EVIL, 5, 0, "lower"),
        record("tuned", 8, 0, "lower"),
        record("free", None, 0, "lower"),
    )
    student["cell"] |= {"student": True, "training": None}
    tuned["cell"]["learned_from"] = {"calls": 4450, "base": "good", "objective": "", "guidance": 1.0, "curve": []}
    return [*fixed, student, tuned, adaptive]


def tables() -> list[list[list[str]]]:
    """The rows and columns of each table, as LaTeX."""
    found = records()
    text = latex(over_seeds(tidy(found), found), ABOUT)
    LatexWalker(text, tolerant_parsing=False).get_latex_nodes()  # braces and environments close
    bodies = re.findall(r"\\toprule\n(.*?)\\bottomrule", text, re.DOTALL)
    lines = [[line for line in body.splitlines() if line != r"\midrule"] for body in bodies]
    assert all(line.endswith(r" \\") for body in lines for line in body)
    return [[re.split(r"(?<!\\) & ", line.removesuffix(r" \\")) for line in body] for body in lines]


LETTERS = {
    "textless": "<", "textgreater": ">", "textbar": "|", "textquotedbl": '"', "textquotesingle": "'",
    "textasciigrave": "`", "textasciicircum": "^",
}  # fmt: skip  # of the packages that the file asks for, which the parser does not know


def read(text: str) -> str:
    """What LaTeX would show."""
    known = get_default_latex_context_db()
    known.add_context_category("letters", [MacroTextSpec(k, v) for k, v in LETTERS.items()], prepend=True)
    return LatexNodes2Text(latex_context=known, strict_latex_spaces=True).latex_to_text(text)


def test_rows_and_columns_are_the_leaderboards() -> None:
    first, second = tables()
    assert [row[0] for row in first[:5]] == ["Solver", "alike", "good", "tuned", "worse"]
    assert first[0] == ["Solver", "5", "8"]
    assert all(len(row) == 3 for row in first[:-1])  # the last, an adaptive solver's, spans all
    assert first[-1][0].startswith(r"\multicolumn{3}{l}{free, 30 calls a sample on average: $1.96 ")
    assert len(second) == len(first)


def test_numbers_and_bold_are_those_of_the_markdown() -> None:
    found = records()
    board = over_seeds(tidy(found), found)
    theirs = leaderboard(board, board[:0], ABOUT)
    for row in tables()[0][1:5]:
        [line] = [line for line in theirs.splitlines() if line.startswith(f"| {row[0]} |")][:1]
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")][1:]
        for mine, other in zip(row[1:], cells, strict=True):
            assert (r"\mathbf" in mine) == ("**" in other)
            plain = (
                re.sub(r"\\mathbf\{(.*)\}", r"\1", mine).replace("$", "").replace(r"\pm", "±").replace(r"\cdot", "·")
            )
            assert plain.replace("---", "—") == other.replace("**", "")


def test_students_are_marked_and_names_read_back() -> None:
    [name] = [row[0] for row in tables()[0] if row[0].endswith(r"\textsuperscript{\textdagger}")]
    assert read(name.removesuffix(r"\textsuperscript{\textdagger}")) == EVIL


def test_the_whole_is_tables_of_balanced_environments() -> None:
    found = records()
    text = latex(over_seeds(tidy(found), found), ABOUT)
    nodes, *_ = LatexWalker(text, tolerant_parsing=False).get_latex_nodes()
    assert [node.environmentname for node in nodes if isinstance(node, LatexEnvironmentNode)] == ["table", "table"]
    assert r"my\_gmm\textbackslash{}input\{x\}" in text
    assert "After $\\cdot$" in text
    assert r"· 4.45k" not in text


def test_tiny_numbers_are_products() -> None:
    found = [record("good", 5, 0, "lower")]
    found[0]["metrics"][0] |= {"value": 1.234e-5, "se": 6.7e-7}
    assert r"1.23 \times 10^{-5} \pm 7 \times 10^{-7}" in latex(over_seeds(tidy(found), found), ABOUT)


@example("a--b---c''d``e")
@given(st.text(alphabet=[c for c in printable if c.isprintable()]))
def test_any_name_reads_back_letter_by_letter(name: str) -> None:
    assert read(escaped(name)) == " ".join(name.split())
    assert not re.search(r"(?<!\\)[&%$#_]|--|``|''", escaped(name))


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no TeX here")
def test_it_compiles(tmp_path: Path) -> None:
    found = records()
    packages = (
        r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{booktabs,adjustbox,textcomp}\begin{document}"
    )
    text = latex(over_seeds(tidy(found), found), ABOUT)
    (tmp_path / "a.tex").write_text(f"{packages}\n{text}\n\\end{{document}}\n")
    done = subprocess.run(["pdflatex", "-halt-on-error", "a.tex"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
