"""Published FID stands in a leaderboard as a citation, and in no table of ours."""

import json
from pathlib import Path

import pytest

from bench.report import write_report
from bench.report.published import published
from bench.runner import prepare
from bench.store import Store
from tests.bench.common import read_sweep

HEAD = "## Published, not ours"


def test_rows_carry_their_numbers_and_their_source() -> None:
    head, sentence, table = published("edm-ffhq-64x64-uncond-vp")
    assert head == HEAD
    assert "None of it was measured here" in sentence
    assert "settings may differ" in sentence
    assert table.splitlines()[0] == "| solver | 5 | 6 | 8 | 10 | source |"
    assert "| unipc | 21.40 | 12.85 | 5.50 | 3.84 | zju-pi/diff-sampler, README |" in table


def test_students_stand_under_the_data_set_of_their_teachers() -> None:
    table = published("edm-imagenet-64x64-cond-adm")[-1]
    row = next(line for line in table.splitlines() if line.startswith("| DMD2 |"))
    assert row.split(" | ")[1] == "1.51"
    assert row.endswith("arXiv 2405.14867; distilled students, of the same data set |")


@pytest.mark.parametrize("name", ["digits", "mine", "edm-cifar10-32x32-cond-ve", "path/to.pkl"])
def test_a_checkpoint_without_published_numbers_has_no_section(name: str) -> None:
    assert published(name) == []


def test_a_report_cites_them_and_its_tables_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = read_sweep(None, {
        "checkpoint": "gmm", "solvers": ["ddim"], "nfe": [5], "samples": 16, "latency": False,
        "metrics": ["trajectory"],
    })  # fmt: skip
    job = prepare(sweep, tmp_path / "run", "cpu")
    job.open()
    assert not job.run("a test")
    store = Store(tmp_path / "run")
    write_report(store)
    assert HEAD not in (tmp_path / "run" / "leaderboard.md").read_text()
    own = tmp_path / "lab.yaml"
    cited = {"citation": "Somebody 2031", "nfe": [5], "fid": {"ddim": [123.45]}}
    source = {"url": "https://lab.org/x.pkl", "licence": "ours"}
    about = {"about": "ours", "source": source, "loader": "edm", "resolution": 8, "published": [cited]}
    own.write_text(json.dumps({"checkpoints": {"gmm": about}}))
    monkeypatch.setenv("FEWSTEP_MANIFEST", str(own))
    write_report(store)
    board = (tmp_path / "run" / "leaderboard.md").read_text()
    assert board.index(HEAD) > board.index("## ")
    assert "| ddim | 123.45 | Somebody 2031 |" in board
    for table in (tmp_path / "run").rglob("table.*"):
        assert b"123.45" not in table.read_bytes()
    assert "Somebody" not in (tmp_path / "run" / "table.csv").read_text()
