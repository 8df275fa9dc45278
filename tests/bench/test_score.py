"""`fewstep reference` and `fewstep score`: what they write and print, and one line for each thing they refuse."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch_fidelity

from bench.checkpoints import digits
from bench.images import open_images
from bench.metrics.statistics import read_statistics
from tests.bench.fidelity import LAYER, NAME
from tests.bench.test_cli import fewstep
from tests.bench.test_digits_features import Bytes
from tests.bench.test_images import folder, table
from tests.bench.test_statistics import Shell

REAL, SAMPLES = digits.real("heldout")[:200], digits.real("train")[:150]


class Run:
    """Runs the command line in a folder of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.monkeypatch, self.capsys = folder, monkeypatch, capsys

    def __call__(self, *arguments: str) -> str:
        """What a command that succeeds prints."""
        code = fewstep(self.monkeypatch, *arguments)
        out, err = self.capsys.readouterr()
        assert code == 0, err
        return out

    def refuses(self, *arguments: str) -> str:
        """The line that a command is refused with, which writes nothing but what is kept between runs."""
        before = sorted(path for path in self.folder.rglob("*") if "cache" not in path.parts)
        self.capsys.readouterr()
        assert fewstep(self.monkeypatch, *arguments) == 2
        out, err = self.capsys.readouterr()
        assert out == ""
        assert err.startswith("fewstep: ")
        assert err.count("\n") == 1
        assert sorted(path for path in self.folder.rglob("*") if "cache" not in path.parts) == before
        assert not (self.folder / "cache" / "references").exists()
        return err


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEWSTEP_CACHE", "cache")
    monkeypatch.setenv("COLUMNS", "200")
    folder(Path("real"), REAL)
    table(Path("samples.parquet"), SAMPLES, split=["a"] * 100 + ["b"] * 50)
    return Run(tmp_path, monkeypatch, capsys)


def numbers(path: str) -> dict[str, Any]:
    return {v["metric"]: v for v in json.loads(Path(path).read_text())["metrics"]}


def test_scores_are_torch_fidelitys(run: Run) -> None:
    printed = run("score", "samples.parquet", "--reference", "real", "--metrics", "frechet_digits", "--out", "a.json")
    theirs = torch_fidelity.calculate_metrics(
        input1=Bytes(SAMPLES), input2=Bytes(REAL), feature_extractor=NAME, feature_layer_fid=LAYER, fid=True,
        cuda=False, cache=False, verbose=False, save_cpu_ram=True,
    )["frechet_inception_distance"]  # fmt: skip
    found = numbers("a.json")["frechet_digits"]
    assert found["value"] == pytest.approx(theirs, rel=1e-6)
    assert found["n"] == 150
    assert 0 < found["se"] < found["value"]
    assert (found["reference"]["data"], found["reference"]["n"]) == ("real", 200)
    assert f"{found['value']:.6g}" in printed
    for column in ("frechet_digits", "150", "digits classifier", "real", "200"):
        assert column in printed
    about = json.loads(Path("a.json").read_text())["images"]
    assert about == {
        "data": "samples.parquet",
        "n": 150,
        "shape": [1, 8, 8],
        "sha256": open_images("samples.parquet").digest,
    }


def test_some_of_a_table_is_scored(run: Run) -> None:
    run("score", "samples.parquet(split=b)", "--reference", "real", "--metrics", "frechet_pixels", "--out", "a.json")
    assert numbers("a.json")["frechet_pixels"]["n"] == 50


def test_a_metric_without_a_reference_needs_none(run: Run) -> None:
    run("score", "real", "--metrics", "inception_score(features=digits_logits)", "--out", "a.json")
    (found,) = numbers("a.json").values()
    assert 1 < found["value"] <= 10


def test_numbers_stand_under_what_they_compare_within(run: Run) -> None:
    metrics = "frechet_digits,energy,frechet_pixels,inception_score(features=digits_logits)"
    lines = run("score", "samples.parquet", "--reference", "real", "--metrics", metrics, "--out", "a.json").splitlines()
    digits, pixels, logits = (line for line in lines if not line.startswith(" "))
    assert digits.endswith(", against real, n = 200")
    assert pixels == "pixels, against real, n = 200"
    assert logits.endswith(" splits")
    under = {name: [line.split()[0] for line in lines[lines.index(name) + 1 :]] for name in (digits, pixels, logits)}
    assert [names[0] for names in under.values()] == ["frechet_digits", "frechet_pixels", lines[-1].split()[0]]
    assert under[digits][:2] == ["frechet_digits", "energy"]


def test_whole_numbers_serve_where_numbers_do(run: Run) -> None:
    for i, bandwidth in enumerate(("2", "2.0")):
        metric = f"mmd(bandwidth={bandwidth})"
        run("score", "samples.parquet", "--reference", "real", "--metrics", metric, "--out", f"{i}.json")
    assert numbers("0.json") == numbers("1.json")
    assert list(numbers("0.json")) == ["mmd(bandwidth=2.0)"]


def test_statistics_are_kept_under_a_name(run: Run) -> None:
    printed = run("reference", "real", "--features", "digits,pixels", "--name", "heldout")
    assert "heldout, digits of 200 images 1x8x8, family digits classifier" in printed
    assert "heldout, pixels of 200 images 1x8x8, family pixels" in printed
    metrics = ("--metrics", "frechet_digits,frechet_pixels")
    run("score", "samples.parquet", "--reference", "heldout", *metrics, "--out", "by name.json")
    run("score", "samples.parquet", "--reference", "heldout(n=200)", *metrics, "--out", "by n.json")
    run("score", "samples.parquet", "--reference", "real", *metrics, "--out", "by images.json")
    by_name, by_n, by_images = (numbers(f"by {k}.json") for k in ("name", "n", "images"))
    assert by_name == by_n
    for metric, found in by_name.items():
        assert found["value"] == pytest.approx(by_images[metric]["value"], rel=1e-9)
        assert found["reference"] | {"sha256": ""} == {"data": "heldout", "n": 200, "sha256": ""}


@pytest.mark.parametrize(("out", "form"), [("a.npz", []), ("a.pkl", []), ("a.npz", ["--format", "adm"])])
def test_statistics_go_into_a_file(out: str, form: list[str], run: Run) -> None:
    run("reference", "real", "--out", out, *form)
    (found,) = read_statistics(Path(out)).values()
    assert found.tags is not None
    about = found.tags.model_dump()
    assert about | {"family": ""} == {
        "layer": "digits", "family": "", "n": 200, "shape": (1, 8, 8), "name": "real",
        "images": open_images("real").digest,
    }  # fmt: skip
    if form:
        np.testing.assert_array_equal(next(open_images(f"{out}(images=arr_0)").batches(200)), REAL)


def test_foreign_statistics_are_tagged_once(run: Run) -> None:
    run("reference", "real", "--out", "mine.npz")
    with np.load("mine.npz") as mine:
        np.savez("foreign.npz", mu=mine["mu"], sigma=mine["sigma"])
        Path("foreign.pkl").write_bytes(pickle.dumps({"digits": {"mu": mine["mu"], "sigma": mine["sigma"]}}))
    stated = ("--samples", "200", "--shape", "1x8x8", "--name", "published")
    run("reference", "foreign.npz", "--features", "digits", *stated, "--out", "a.npz")
    run("reference", "foreign.pkl", *stated)
    score = ("score", "samples.parquet", "--metrics", "frechet_digits")
    for reference in ("mine.npz", "a.npz", "published"):
        run(*score, "--reference", reference, "--out", f"{reference}.json")
    found = [numbers(f"{reference}.json")["frechet_digits"] for reference in ("mine.npz", "a.npz", "published")]
    assert len({v["value"] for v in found}) == 1
    assert len({v["reference"]["sha256"] for v in found}) == 1
    assert [v["reference"]["data"] for v in found] == ["real", "published", "published"]


def test_tagged_statistics_change_their_format_and_name(run: Run) -> None:
    run("reference", "real", "--features", "digits,pixels", "--out", "two.pkl")
    run("reference", "two.pkl", "--features", "pixels", "--out", "one.npz", "--name", "other")
    two, one = read_statistics(Path("two.pkl")), read_statistics(Path("one.npz"))
    assert list(two) == ["digits", "pixels"]
    assert one["pixels"].digest == two["pixels"].digest
    assert one["pixels"].tags is not None
    assert one["pixels"].tags.name == "other"


SCORE = ["score", "samples.parquet", "--reference"]
REFUSED: dict[str, tuple[list[str], str]] = {
    "no such folder": (["score", "nowhere", "--reference", "real"], "nowhere: there is no nowhere; give a folder"),
    "empty folder": (["score", "empty", "--reference", "real"], "empty holds no images: give 2 or more"),
    "one image": (["score", "one", "--reference", "real"], "one holds one image: give 2 or more"),
    "sizes": (["score", "sizes", "--reference", "real"], "sizes holds images of several sizes: sizes/"),
    "truncated": (
        [*SCORE, "truncated", "--metrics", "frechet_digits"],
        "truncated/00/00001.png cannot be read as an image",
    ),
    "nan": (["score", "nan.npz", "--reference", "real"], "nan.npz holds float32, some NaN or infinite: give bytes"),
    "other size": ([*SCORE, "seven", "--metrics", "frechet_pixels"], "seven is of 1x7x8 images and samples.parquet of"),
    "no reference": (
        ["score", "real", "--metrics", "frechet_digits"],
        "real images, which real lacks: give a reference",
    ),
    "states": ([*SCORE, "real", "--metrics", "trajectory"], "metric 'trajectory' is about a sampler's states"),
    "typo": ([*SCORE, "real", "--metrics", "frechet_digit"], "did you mean 'frechet_digits'?"),
    "no metric": ([*SCORE, "real", "--metrics", ""], "--metrics names none: give one or more"),
    "no such name": (
        [*SCORE, "reel", "--metrics", "frechet_digits"],
        "reel: there is no reel, nor such a name; give a folder of images, a parquet file, or an npz or npy file of "
        "uint8, or one of the kept: none",
    ),
    "text": ([*SCORE, "text.npz", "--metrics", "frechet_digits"], "it holds no plain arrays, and nothing is unpickled"),
    "corrupt": ([*SCORE, "corrupt.npz", "--metrics", "frechet_digits"], "corrupt.npz cannot be read as npz"),
    "evil": ([*SCORE, "evil.pkl", "--metrics", "frechet_digits"], "evil.pkl cannot be read as statistics: it tries to"),
    "foreign": ([*SCORE, "foreign.npz", "--metrics", "frechet_digits"], "does not say what it is of; state it once"),
    "zip": ([*SCORE, "real.zip", "--metrics", "frechet_digits"], "real.zip is no set of images; give a folder"),
    "there": ([*SCORE, "real", "--metrics", "frechet_digits", "--out", "evil.pkl"], "evil.pkl is there already"),
    "below": ([*SCORE, "real", "--out", "evil.pkl/a.json"], "evil.pkl is a file, not a folder"),
    "untold": (["reference", "foreign.npz", "--features", "digits"], "give --samples N and --shape CxHxW"),
    "layer": (["reference", "foreign.npz", "--samples", "9", "--shape", "1x8x8"], "one layer that it does not name"),
    "width": (
        ["reference", "foreign.npz", "--features", "digits", "--samples", "9", "--shape", "1x8x8"],
        "foreign.npz has 3 features, and digits has 64",
    ),
    "n": (["reference", "foreign.npz", "--samples", "1", "--shape", "1x8x8"], "statistics are of 2 images or more"),
    "shape": (["reference", "foreign.npz", "--samples", "9", "--shape", "8x8"], "'8x8' is not of the form CxHxW"),
    "told twice": (["reference", "real", "--samples", "9"], "real says itself what it is of"),
    "no layer": (["reference", "real", "--features", "digit"], "did you mean 'digits'?"),
    "no states": (["reference", "real", "--features", "states"], "images have no states"),
    "name": (["reference", "real", "--name", "a/b"], "--name 'a/b': give letters, digits, dots and dashes"),
    "format": (["reference", "real", "--out", "a.npz", "--format", "csv"], "'csv' is none of npz, pkl, adm"),
    "suffix": (["reference", "real", "--out", "a.csv"], "format 'csv' is none of npz, pkl, adm"),
    "alone": (["reference", "real", "--format", "pkl"], "--format pkl goes with --out"),
    "many": (["reference", "real", "--features", "digits,pixels", "--out", "a.npz"], "give a file ending in .pkl"),
    "kept": (["reference", "real", "--out", "evil.pkl"], "evil.pkl is there already"),
}


@pytest.mark.parametrize(("arguments", "says"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_one_line_and_writes_nothing(arguments: list[str], says: str, run: Run) -> None:
    Path("empty").mkdir()
    folder(Path("one"), REAL[:1])
    folder(Path("seven"), REAL[:3, :, :7])
    folder(Path("truncated"), REAL[:2])
    damaged = Path("truncated/00/00001.png")
    damaged.write_bytes(damaged.read_bytes()[:60])
    folder(Path("sizes"), REAL[:2])
    folder(Path("sizes/more"), REAL[:2, :, :5])
    np.savez("nan.npz", samples=np.full((4, 1, 8, 8), np.nan, np.float32))
    np.savez("foreign.npz", mu=np.zeros(3), sigma=np.eye(3))
    Path("corrupt.npz").write_bytes(Path("foreign.npz").read_bytes()[:-40])
    Path("evil.pkl").write_bytes(pickle.dumps(Shell("touch proof")))
    Path("real.zip").write_bytes(b"")
    Path("text.npz").write_text("no zip")
    assert says in run.refuses(*arguments)
    assert not Path("proof").exists()


def test_a_name_is_given_once(run: Run) -> None:
    run("reference", "real", "--name", "mine")
    assert fewstep(run.monkeypatch, "reference", "real", "--name", "mine") == 2
    assert "digits.npz is there already" in run.capsys.readouterr().err
