"""What samples are compared with: any place the images may lie gives the same numbers, and a wrong one is refused."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from bench.checkpoints import Task, digits, load
from bench.errors import UsageError
from bench.images import ArrayImages, DatasetImages, open_images
from bench.metrics import Chunk, Context, Features, make_metric
from bench.metrics.digits_features import Digits
from bench.metrics.features import extractor
from bench.metrics.reference import OfImages, reference
from bench.metrics.statistics import Statistics, Tags, write_statistics
from bench.runner import prepare
from bench.spec import Sweep
from tests.bench.test_images import folder, png, table

REAL = digits.real("heldout")[:150]
SAMPLES = digits.real("train")[:120]
CHECKPOINT = load("digits")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))


def context(*references: str | Path) -> Context:
    texts = tuple(str(text) for text in references)
    return Context(CHECKPOINT, 0, Task(), Path("unused"), torch.device("cpu"), references=texts)


def value(metric: str, *references: str | Path) -> float:
    """The metric of SAMPLES against the first of these that serves."""
    ready = make_metric(metric, context(*references))
    return ready.evaluate(ready.extract(Chunk(0, None, SAMPLES)), ())[0].value


def tagged(path: Path, images: Any = REAL, features: bool = False, **tags: Any) -> Path:
    """A file of the statistics of images' digits features, with some tags other than the true ones."""
    network = extractor(context(), "digits")
    x = network.extract(Chunk(0, None, images))["digits"].astype(np.float64)
    true = {"layer": "digits", "family": network.family, "n": len(images), "shape": (1, 8, 8), "name": "held out"}
    statistics = Statistics(x.mean(0), np.cov(x, rowvar=False), Tags(**(true | tags)), x if features else None)
    write_statistics(path, [statistics], path.suffix[1:])
    return path


def test_the_same_images_anywhere_give_the_same_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "a.npz", REAL.transpose(0, 2, 3, 1))
    sets = [
        open_images(str(folder(tmp_path / "folder", REAL))),
        open_images(str(table(tmp_path / "a.parquet", REAL))),
        open_images(str(tmp_path / "a.npz")),
        DatasetImages("object", [(torch.from_numpy(image), 0) for image in REAL]),
    ]
    network = extractor(context(), "digits")
    expected = network.extract(Chunk(0, None, REAL))["digits"]
    for i, images in enumerate(sets):
        monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / f"cache {i}"))
        found = OfImages(images, network, "digits")
        np.testing.assert_allclose(found.features, expected, atol=1e-5)
        np.testing.assert_allclose(found.gaussian.mean, expected.mean(0), atol=1e-5)
        np.testing.assert_allclose(found.gaussian.covariance, np.cov(expected, rowvar=False), atol=1e-4)
        assert (found.source["n"], found.digest) == (150, sets[0].digest)


def test_statistics_and_images_give_the_same_distance(tmp_path: Path) -> None:
    real = folder(tmp_path / "real", REAL)
    expected = value("frechet_digits", real)
    assert expected > 0
    for file in ("a.npz", "a.pkl"):
        assert value("frechet_digits", tagged(tmp_path / file)) == pytest.approx(expected, rel=1e-6)


def test_a_reference_stands_in_place_of_the_checkpoints_own_data(tmp_path: Path) -> None:
    own = value("frechet_digits")
    assert value("frechet_digits", folder(tmp_path / "real", REAL)) != pytest.approx(own, rel=0.01)
    assert value("frechet_digits", folder(tmp_path / "own", digits.real())) == pytest.approx(own, rel=1e-9)


def test_the_first_source_that_can_serve_does(tmp_path: Path) -> None:
    statistics, real = tagged(tmp_path / "a.npz"), folder(tmp_path / "real", REAL)
    both, names = context(statistics, real), {}
    for layer in ("digits", "pixels"):
        for need in ("gaussian", "features"):
            names[layer, need] = reference(both, extractor(both, layer), layer, need).source["data"]
    assert names == {
        ("digits", "gaussian"): "held out",
        ("digits", "features"): str(real),
        ("pixels", "gaussian"): str(real),
        ("pixels", "features"): str(real),
    }
    assert value("energy(features=digits)", statistics, real) == value("energy(features=digits)", real)


def test_statistics_serve_features_where_they_have_them(tmp_path: Path) -> None:
    expected = value("energy(features=digits)", folder(tmp_path / "real", REAL))
    found = value("energy(features=digits)", tagged(tmp_path / "a.npz", features=True))
    assert found == pytest.approx(expected, rel=1e-5)


class Counting(Digits):
    """The digits classifier, counting the images it sees."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.seen = 0

    def extract(self, chunk: Chunk) -> Mapping[str, Features]:
        self.seen += len(chunk)
        return super().extract(chunk)


def test_features_are_taken_once_and_not_before_they_are_asked_for(tmp_path: Path) -> None:
    real = folder(tmp_path / "real", REAL)
    first = context(real)
    network = Counting(first)
    found = [reference(first, network, layer, need) for layer in network.layers for need in ("gaussian", "features")]
    assert [r.source["n"] for r in found] == [150] * 4
    assert network.seen == 0
    for r in found:
        assert len(r.features) == 150
        assert np.isfinite(r.gaussian.covariance).all()
    assert network.seen == 150
    later = Counting(context(real))
    np.testing.assert_array_equal(reference(later.context, later, "digits").features, found[0].features)
    assert later.seen == 0


def test_kept_features_serve_nothing_but_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def seen(layer: str, family: str = "digits", shape: tuple[int, ...] = (1, 8, 8)) -> int:
        network = Counting(context())
        network.family = family
        images = ArrayImages("real", REAL.reshape(-1, *shape))
        assert OfImages(images, network, layer).features.shape[1] == network.width(layer)
        return network.seen

    assert [seen("digits"), seen("digits"), seen("digits_logits")] == [150, 0, 150]
    assert [seen("digits", "another network"), seen("digits", shape=(1, 4, 16))] == [150, 150]
    monkeypatch.setattr("bench.metrics.reference.version", lambda package: f"another {package}")
    assert [seen("digits"), seen("digits")] == [150, 0]


def refuses(metric: str, *references: str | Path, says: str) -> None:
    with pytest.raises(UsageError) as error:
        make_metric(metric, context(*references))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_references_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    small = folder(tmp_path / "small", REAL[:, :, :7])
    refuses("frechet_digits", small, says=f"{small} is of 1x7x8 images and digits of 1x8x8")
    colour = tagged(tmp_path / "colour.npz", shape=(3, 32, 32))
    refuses("frechet_digits", colour, says="colour.npz is of 3x32x32 images and digits of 1x8x8")
    family = tagged(tmp_path / "family.npz", family="digits classifier 000000000000")
    refuses("frechet_digits", family, says="it is of family 'digits classifier 000000000000', the samples of 'digits")
    layer = tagged(tmp_path / "layer.npz", layer="digits_logits")
    refuses("frechet_digits", layer, says="no reference serves 'digits' features")
    refuses("frechet_digits", layer, says="layer.npz: it is of digits_logits")
    refuses("energy(features=digits_logits)", layer, says="it has 64 features, the samples have 10")
    moments = tagged(tmp_path / "moments.npz")
    refuses("energy(features=digits)", moments, says="the features themselves are needed: give images")
    refuses("frechet_pixels", moments, layer, says="moments.npz: it is of digits; ")
    refuses("frechet_digits", f"{moments}(n=50000)", says="is of 150 images, not of n=50000")
    refuses("frechet_digits", f"{moments}(split=train)", says="split means nothing for statistics")
    refuses("frechet_digits", tmp_path / "nowhere", says="there is no")
    make_metric("frechet_digits", context(f"{moments}(n=150)"))


@pytest.mark.parametrize("features", ["", "inception"])
def test_foreign_statistics_are_refused_with_the_way_to_tag_them(features: str, tmp_path: Path) -> None:
    path, held = tmp_path / "foreign.npz", {"mu": np.zeros(2048), "sigma": np.eye(2048)}
    if features:
        import pickle

        path = tmp_path / "foreign.pkl"
        path.write_bytes(pickle.dumps({"fid": held}))
    else:
        np.savez(path, **held)
    says = f"fewstep reference {path} --features inception --samples 50000 --shape 1x8x8 --name NAME"
    refuses("frechet_digits", path, says=says)


def test_samples_that_are_no_images_have_no_such_reference(tmp_path: Path) -> None:
    real = folder(tmp_path / "real", np.zeros((3, 1, 4, 4), np.uint8))
    gmm = load("gmm")
    (shape,) = {gmm.shape}
    assert shape == (1, 4, 4)
    with pytest.raises(UsageError, match="images have no states"):
        make_metric("frechet_exact", replace(context(real), checkpoint=gmm))


def sweep(reference: str | Path, out: Path, **others: Any) -> Any:
    given = {"solvers": ("ddim",), "nfe": (5,), "samples": 80, "latency": False, "metrics": ("frechet_digits",)}
    return prepare(Sweep(**(given | others), reference=str(reference)), out, "cpu")


def test_cells_against_other_references_are_other_cells(tmp_path: Path) -> None:
    texts: list[str | Path] = [
        folder(tmp_path / "150", REAL),
        folder(tmp_path / "149", REAL[:149]),
        tagged(tmp_path / "150.npz"),
        tagged(tmp_path / "149.npz", n=149),
    ]
    keys = [sweep(text, tmp_path / "out").cells[0].key for text in texts]
    assert len(set(keys)) == 4
    assert sweep(table(tmp_path / "150.parquet", REAL), tmp_path / "out").cells[0].key == keys[0]
    assert not (tmp_path / "out").exists()


def test_a_sweeps_records_say_what_they_were_compared_with(tmp_path: Path) -> None:
    split = pa.array(["train"] * 75 + ["test"] * 75)
    text = f"{table(tmp_path / 'real.parquet', REAL, split=split)}(split=train)"
    job = sweep(text, tmp_path / "out")
    job.open()
    assert job.run("a test", lambda cell, samples: None) == []
    (record,) = job.store.records()
    (found,) = record["metrics"]
    assert found["reference"] == {"data": text, "n": 75, "sha256": open_images(text).digest}


def test_an_unreadable_image_stops_a_sweep_before_it_writes(tmp_path: Path) -> None:
    rows = [png(image) for image in REAL]
    pq.write_table(pa.table({"png": [*rows[:-1], rows[-1][:-30]]}), tmp_path / "real.parquet")
    with pytest.raises(UsageError, match=r"real.parquet image 149 cannot be read as an image"):
        sweep(tmp_path / "real.parquet", tmp_path / "out")
    assert not (tmp_path / "out").exists()
