"""The HTML page: its numbers are the records', text is escaped, it asks nobody for anything, and it stays small."""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import cli
from bench.errors import UsageError
from bench.report.page import LIMIT, page, write_page
from bench.report.page.pictures import pictures_of
from bench.report.page.slopes import slopes_of
from bench.report.run import Run, read_run
from bench.store import Store
from tests.bench.page_runs import HOSTILE, write_run


class Reader(HTMLParser):
    """Elements, addresses and the contents of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts[-1] += data
        self.text += data


def data_in(text: str) -> list[dict[str, Any]]:
    read = Reader(text)
    (place,) = [i for i, (_, a) in enumerate(t for t in read.tags if t[0] == "script") if a.get("id") == "data"]
    found: list[dict[str, Any]] = json.loads(read.scripts[place])
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return read_run(write_run(tmp_path_factory.mktemp("runs") / "digits"))


@pytest.fixture(scope="module")
def text(run: Run) -> str:
    return page([run])


def test_the_numbers_are_those_of_the_records(run: Run, text: str) -> None:
    (about,) = data_in(text)
    cells, seen = about["cells"], 0
    of_record = {(r["cell"]["solver"], r["cell"]["nfe"]): r["metrics"] for r in run.records}
    for k, metric in enumerate(["frechet_digits", "precision", "trajectory_rmse"]):
        (shown,) = [m for m in about["metrics"] if m["name"] == metric]
        for cell, value, se in zip(shown["cell"], shown["value"], shown["se"], strict=True):
            name = about["solvers"][cells["solver"][cell]]["name"]
            there = of_record[name, cells["nfe"][cell]][k]
            assert (value, se) == pytest.approx((there["value"], there["se"]), rel=1e-5)
            seen += 1
    assert seen == 30


def test_the_best_of_each_budget_is_marked_and_leads_its_group(text: str) -> None:
    (about,) = data_in(text)
    for metric, pick in ((about["metrics"][0], min), (about["metrics"][1], max)):
        nfe = [about["cells"]["nfe"][cell] for cell in metric["cell"]]
        for budget in set(nfe) - {1}:  # where the student is alone
            here = [k for k, n in enumerate(nfe) if n == budget]
            best = pick(here, key=lambda k: metric["value"][k])
            assert [metric["best"][k] == 2 for k in here] == [k == best for k in here]
            assert metric["letters"][best].startswith("a")


def test_fronts_hold_what_nothing_beats(text: str) -> None:
    (about,) = data_in(text)
    for metric, sign in ((about["metrics"][0], 1), (about["metrics"][1], -1)):
        loss = dict(zip(metric["cell"], (sign * np.array(metric["value"])).tolist(), strict=True))
        every = {c: (c,) for c in ("latency", "time", "memory")} | {"all": ("latency", "memory")}
        for name, costs in every.items():
            of = {i: (loss[i], *(about["cells"][c][i] for c in costs)) for i in loss}
            beaten = {
                i for i in of for j in of if of[i] != of[j] and all(b <= a for a, b in zip(of[i], of[j], strict=True))
            }
            assert set(metric["fronts"][name]) <= set(of) - beaten
            assert {of[i] for i in metric["fronts"][name]} == {of[i] for i in set(of) - beaten}


def test_a_window_takes_speeds_off_the_front(tmp_path: Path) -> None:
    window = {"metric": "frechet_digits", "low": 5.0, "high": 60.0}
    (about,) = data_in(page([read_run(write_run(tmp_path / "a", quality=window))]))
    metric = about["metrics"][0]
    value = dict(zip(metric["cell"], metric["value"], strict=True))
    assert set(value) - {i for i in value if 5 <= value[i] <= 60}
    assert all(5 <= value[i] <= 60 for front in metric["fronts"].values() for i in front)
    assert about["window"] == window


def test_slopes_of_a_known_order_with_their_errors(run: Run) -> None:
    found = slopes_of(run.board)
    assert [slope.value for slope in found] == pytest.approx([2, 2, 2])  # errors fall with the square of the calls
    assert {(slope.first, slope.last) for slope in found} == {(5, 10)}
    for slope in found:  # from independent values of a tenth of their size, over N samples, at two budgets
        assert slope.se == pytest.approx(2**0.5 * 0.1 / 200**0.5 / np.log(2), rel=0.3)


def test_hostile_names_are_text(tmp_path: Path) -> None:
    names = ["<script>window.hit = 1</script>", HOSTILE, "a\"b'c&d"]
    run = read_run(write_run(tmp_path / "run", HOSTILE, names))
    read = Reader(page([run]))
    assert [tag for tag, _ in read.tags].count("script") == len([s for s in read.scripts if s]) == 5
    assert not [tag for tag, a in read.tags if tag == "img" or any(name.startswith("on") for name in a)]
    assert read.text.count(f"no memory {HOSTILE}") == 1
    assert {solver["name"] for solver in data_in(page([run]))[0]["solvers"]} == {"cd", *names}


def test_nothing_is_asked_of_anybody(text: str) -> None:
    read = Reader(text)
    loads = [a.get(name) for _, a in read.tags for name in ("src", "srcset", "data", "action", "poster") if a.get(name)]
    links = [a["href"] for _, a in read.tags if a.get("href")]
    assert not loads
    assert all(link is not None and link.startswith("#") for link in links)
    assert "link" not in {tag for tag, _ in read.tags}
    (policy,) = [a["content"] for tag, a in read.tags if tag == "meta" and "http-equiv" in a]
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy.partition("script-src")[2].partition(";")[0]
    assert not re.search(r"@import|url\((?!data:)", "".join(re.findall(r"<style>(.*?)</style>", text, re.DOTALL)))


def test_equal_data_gives_equal_pages(run: Run, text: str) -> None:
    assert page([read_run(run.store)]) == text


def test_pictures_take_what_room_is_left_and_the_page_says_what_is_missing(tmp_path: Path) -> None:
    """Noise cannot be packed: what these images hold is 12 MB."""
    run = read_run(write_run(tmp_path / "run", solvers=["s0", "s1", "s2", "s3"], shape=(3, 96, 96)))
    whole = page([run])
    assert 1_000_000 < len(whole.encode()) <= LIMIT
    assert "shrunk to" in whole
    for room in (10**6, 10**5, 10**4, 6000):
        assert len(json.dumps(pictures_of(run, room).data)) <= room
    assert "Of 5 solvers" in pictures_of(run, 6000).note
    found = pictures_of(run, 6000).data["found"]
    assert len(found) > 1
    assert all(set(of) == {"2", "5", "10"} for name, of in found.items() if name != "cd")  # no solver in part


def test_a_run_without_images_says_so(tmp_path: Path) -> None:
    text = page([read_run(write_run(tmp_path / "run", shape=None))])
    assert "No images were kept" in text
    assert data_in(text)[0]["pictures"] == {}


def test_a_page_that_cannot_be_small_is_refused(run: Run) -> None:
    with pytest.raises(UsageError, match=r"2 runs would take \d\.\d MB, more than 1: give fewer folders"):
        page([run, run], 1_000_000)


def test_two_runs_of_one_checkpoint_are_called_by_their_folders(tmp_path: Path) -> None:
    stores = [write_run(tmp_path / name, shape=None) for name in ("a", "b")]
    write_page(stores, tmp_path / "page.html")
    names = [about["name"] for about in data_in((tmp_path / "page.html").read_text())]
    assert names == [f"digits, {tmp_path / 'a'}", f"digits, {tmp_path / 'b'}"]


def test_published_numbers_stand_beside_ours_and_say_whose_they_are(tmp_path: Path) -> None:
    text = page([read_run(write_run(tmp_path / "run", "edm-cifar10-32x32-uncond-vp"))])
    assert "EDM" in text.partition('id="published"')[2].partition('id="provenance"')[0]


def fewstep(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["fewstep", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def test_the_command_takes_a_folder_of_runs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = run.store.folder.parent
    assert fewstep(monkeypatch, "report", runs, run.store.folder, "--html", "--out", runs / "all.html") == 0
    assert len(data_in((runs / "all.html").read_text())) == 1  # the same run named twice
    assert fewstep(monkeypatch, "report", run.store.folder, "--html") == 0
    assert (run.store.folder / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/run", "{}/other", "--html"], "fewstep: 2 folders and --html: say where the page goes, --out FILE"),
        (["{}/run", "--out", "x.html"], "fewstep: --out x.html is where the page goes: give --html too"),
        (["{}/nowhere", "--html"], "nowhere is not a results folder"),
        (["{}/empty", "--html"], "empty holds no finished cell"),
        (["{}/run", "--html", "--out", "{}/run"], "is a folder: name a file"),
        (["{}/run", "--html", "--out", "{}/run/sweep.json/x.html"], "is a file, not a folder"),
    ],
)
def test_bad_input_is_one_line_and_nothing_written(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    write_run(tmp_path / "run")
    definition = {"checkpoint": "gmm", "digest": "d", "cells": {}}
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "sweep.json").write_text(json.dumps(definition))
    there = sorted(tmp_path.rglob("*"))
    assert fewstep(monkeypatch, "report", *(a.format(tmp_path) for a in arguments)) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == there


def test_the_store_of_a_page_is_left_as_it_was(tmp_path: Path) -> None:
    store = write_run(tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in store.folder.rglob("*")}
    write_page([Store(store.folder)], tmp_path / "page.html")
    assert {path: path.stat().st_mtime_ns for path in store.folder.rglob("*")} == before
