"""Figures of more solvers than can be told apart: whom they name, what is seen of the others, that all of it fits."""

from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.pngs import file_name
from bench.rank import describe, rank
from bench.report import write_report
from bench.report.frame import tidy
from bench.report.plots import (
    APART,
    GREY,
    NAMED,
    against_nfe,
    curves,
    figure_of,
    named_solvers,
    save,
    with_looks,
    write_plots,
)  # fmt: skip
from bench.report.scores import over_seeds
from tests.bench.test_rank import record, store_of

BUDGETS = (1, 2, 4, 5, 6, 8, 10, 12, 15, 20)
LONG = "student(path='/a/very/long/place/" + 80 * "x" + "/runs/best')"


@cache
def of_many() -> pd.DataFrame:
    return board(many(20))


def board(levels: dict[str, list[float]], student: str = "") -> pd.DataFrame:
    """Solvers and their values at BUDGETS, of other noise each, and one that chose 90 calls."""
    records = []
    for name, values in levels.items():
        for nfe, value in zip(BUDGETS, values, strict=False):
            found = record(name, nfe, 0, "lower")
            found["metrics"] = found["metrics"][:1]
            found["metrics"][0] |= {"value": value, "se": 0.01 * value, "parts": [], "at_infinity": None}
            found["cell"] |= {"student": name == student}
            records.append(found)
    records.append(record("free", None, 0, "lower") | {"counted_nfe": 90})
    records[-1]["metrics"] = records[-1]["metrics"][:1]
    return over_seeds(tidy(records), records)


def many(n: int) -> dict[str, list[float]]:
    """Each best at one budget in turn, as far as budgets go, the rest worse the later they come, one by far."""
    levels = {f"s{k:02}": [(10 + k) / nfe for nfe in BUDGETS] for k in range(n - 1)}
    for k in range(len(BUDGETS)):
        levels[f"s{k + 7:02}"][k] = 5 / BUDGETS[k]
    return levels | {"wild": [1e9 / nfe for nfe in BUDGETS]}


def test_a_few_are_all_named() -> None:
    few = dict(list(many(20).items())[: APART - 1])
    assert named_solvers(board(few)) == ["free", *sorted(few)]
    assert with_looks(board(few))["named"].all()


def test_of_many_those_that_are_best_at_some_budget_are_named() -> None:
    named = named_solvers(of_many())
    assert named == [f"s{k:02}" for k in range(7, 7 + len(BUDGETS))]
    assert len(named) <= NAMED


def test_a_tie_of_all_counts_less_than_a_win_alone() -> None:
    levels = {f"t{k:02}": [1.0, 1.0, 9.0] for k in range(20)} | {"won": [9.0, 9.0, 5.0]}
    assert "won" in named_solvers(board(levels))
    assert len(named_solvers(board(levels))) == NAMED


def test_others_are_grey_under_one_label_and_students_change_no_look() -> None:
    looks = {name: style for name, _, style in curves(with_looks(of_many()))}
    assert len(looks) == 11
    assert looks["others"]["color"] == GREY
    assert len({tuple(style.values()) for style in looks.values()}) == 11
    both = {n: s for n, _, s in curves(with_looks(board(many(20) | {"our": [1.0, 1.0]}, student="our")))}
    assert {name: both[name] for name in looks} == looks
    assert both["our"]["color"] != GREY


def test_the_figure_says_who_is_named_and_all_of_it_fits() -> None:
    table = with_looks(of_many())
    figure = figure_of(table, ["frechet_exact"], against_nfe)
    FigureCanvasAgg(figure).draw()
    [legend] = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts[-1] == "11 others"
    assert len(texts) == 11
    assert "most often the best" in legend.get_title().get_text()
    box, page = legend.get_window_extent(), figure.bbox
    assert box.y0 >= 0
    assert box.y1 <= page.y1
    axes = figure.axes[0]
    assert axes.get_ylim()[1] == 20 * 5  # of the best at one call, not of the wild one
    assert len(axes.yaxis.get_majorticklocs()) >= 3
    _check_labels(figure)


def _check_labels(figure: Figure) -> None:
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels() if label.get_text()]
    assert len(boxes) >= 6
    assert all(a.x1 < b.x0 for a, b in pairwise(boxes))


def test_values_over_many_decades_keep_their_ticks() -> None:
    levels = {f"s{k}": [10.0 ** (9 - 2 * i - k) for i in range(len(BUDGETS))] for k in range(3)}
    axes = figure_of(with_looks(board(levels)), ["frechet_exact"], against_nfe).axes[0]
    low, high = axes.get_ylim()
    assert sum(low <= tick <= high for tick in axes.yaxis.get_majorticklocs()) >= 3


def test_equal_data_gives_equal_files_of_each_kind(tmp_path: Path) -> None:
    files: list[list[Path]] = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        files.append(write_plots(of_many(), tmp_path / name))
    assert [path.suffix for path in files[0]] == [".png", ".svg", ".pdf"]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
    assert files[0][2].read_bytes().startswith(b"%PDF")
    assert b"CreationDate" not in files[0][2].read_bytes()
    assert save(tmp_path / "a.b", Figure())[0].exists()


def test_images_are_of_the_named_and_of_students(tmp_path: Path) -> None:
    levels = many(20)
    records: list[dict[str, Any]] = []
    for name in [*levels, LONG]:
        found = record(name, 5, 0, "lower")
        found["key"] = f"k{len(records):02}"
        found["cell"] |= {"student": name == LONG}
        records.append(found)
    store = store_of(tmp_path / "run", records)
    (tmp_path / "run" / "sidecars").mkdir()
    for found in records:
        images = np.zeros((8, 1, 4, 4), np.uint8)
        np.savez(tmp_path / "run" / "sidecars" / f"{found['key']}.npz", images=images)
    write_report(store)
    written = sorted(path.name for path in (tmp_path / "run").glob("samples-*.png"))
    own = over_seeds(tidy(records), records)
    expected = [*named_solvers(own[own["solver"] != LONG]), LONG]
    assert written == sorted(f"samples-{file_name(name)}.png" for name in expected)
    assert len(written) == NAMED + 1


def test_long_names_make_short_files_that_differ() -> None:
    assert len(file_name(LONG)) < 80
    assert file_name(LONG) != file_name(LONG.replace("best", "last"))
    assert file_name("dpmpp_2m(grid=karras)") == "dpmpp_2m-grid-karras"


def test_rankings_show_no_folders(tmp_path: Path) -> None:
    store = store_of(tmp_path / "run", [record("good", 5, 0, "lower"), record(LONG, 5, 0, "lower") | {"key": "k"}])
    lines = "\n".join(describe(rank(store)))
    assert "student(path='runs/best')" in lines
    assert "/very/long" not in lines
