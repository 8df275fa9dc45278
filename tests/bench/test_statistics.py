"""Files of statistics: every format round, foreign ones read, and nothing but numbers taken from any."""

import io
import os
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.errors import UsageError
from bench.images import ArrayImages
from bench.metrics.statistics import Statistics, Tags, holds_statistics, read_statistics, write_statistics

D = 5
X = np.random.default_rng(0).normal(size=(40, D))
MU, SIGMA = X.mean(0), np.cov(X, rowvar=False)
TAGS = Tags(layer="digits", family="digits classifier abc", n=40, shape=(1, 8, 8), name="mine", images="ff")
PIXELS = np.random.default_rng(1).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)


def tagged(layer: str = "digits", **others: Any) -> Statistics:
    return Statistics(MU, SIGMA, TAGS.model_copy(update={"layer": layer}), **others)


def same(found: Statistics, expected: Statistics) -> None:
    np.testing.assert_array_equal(found.mean, expected.mean)
    np.testing.assert_array_equal(found.covariance, expected.covariance)
    assert (found.tags, found.digest) == (expected.tags, expected.digest)


@pytest.mark.parametrize(("form", "file"), [("npz", "a.npz"), ("pkl", "a.pkl"), ("adm", "a.npz")])
def test_what_is_written_is_read(form: str, file: str, tmp_path: Path) -> None:
    path = tmp_path / file
    write_statistics(path, [tagged()], form, ArrayImages("mine", PIXELS))
    assert holds_statistics(path)
    found = read_statistics(path)
    assert list(found) == ["digits"]
    same(found["digits"], tagged())
    if form == "adm":
        np.testing.assert_array_equal(np.load(path)["arr_0"], PIXELS.transpose(0, 2, 3, 1))


def test_a_pickle_holds_many_layers_under_edm2s_names(tmp_path: Path) -> None:
    path, layers = tmp_path / "a.pkl", ["inception", "dinov2", "digits"]
    write_statistics(path, [tagged(layer) for layer in layers], "pkl")
    assert list(pickle.loads(path.read_bytes())) == ["fid", "fd_dinov2", "digits"]
    found = read_statistics(path)
    assert list(found) == layers
    for layer in layers:
        same(found[layer], tagged(layer))


def test_features_are_kept_where_they_are_known(tmp_path: Path) -> None:
    write_statistics(tmp_path / "a.npz", [tagged(features=X)], "npz")
    (found,) = read_statistics(tmp_path / "a.npz").values()
    np.testing.assert_array_equal(found.features, X)
    assert found.digest == tagged(features=X).digest != tagged().digest


def test_the_digest_is_of_the_numbers_and_what_they_are_of() -> None:
    def digest(mean: Any = MU, **tags: Any) -> str:
        return Statistics(mean, SIGMA, TAGS.model_copy(update=tags)).digest

    assert digest() == digest(name="yours", images=None)
    others = [
        digest(MU + 1e-9),
        digest(n=39),
        digest(family="another"),
        digest(layer="pixels"),
        digest(shape=(3, 8, 8)),
    ]
    assert len({digest(), *others}) == 6


def foreign(path: Path, **arrays: Any) -> Statistics:
    np.savez(path, **arrays)
    (found,) = read_statistics(path).items()
    assert found[0] == ""
    assert found[1].tags is None
    return found[1]


def test_foreign_archives_are_read(tmp_path: Path) -> None:
    path = tmp_path / "foreign.npz"
    edm = foreign(path, mu=MU, sigma=SIGMA)
    adm = foreign(path, arr_0=PIXELS, mu=MU.astype(np.float32), sigma=SIGMA.astype(np.float32), mu_s=MU, sigma_s=SIGMA)
    clean = foreign(path, feats=X.astype(np.float32))
    for found, tolerance in ((edm, 0), (adm, 1e-6), (clean, 1e-6)):
        assert found.mean.dtype == found.covariance.dtype == np.float64
        np.testing.assert_allclose(found.mean, MU, atol=tolerance)
        np.testing.assert_allclose(found.covariance, SIGMA, atol=tolerance)
    assert clean.features is not None
    assert clean.features.shape == X.shape


def as_numpy_1(data: bytes) -> bytes:
    """A pickle as numpy 1 wrote it: `numpy.core` for `numpy._core`, with the lengths that say so."""
    out, ops = b"", list(pickletools.genops(data))
    ends = [at for _, _, at in ops[1:]] + [len(data)]
    for (op, value, at), end in zip(ops, ends, strict=True):
        piece = data[at:end]
        if op.name == "SHORT_BINUNICODE" and str(value).startswith("numpy._core"):
            name = str(value).replace("_core", "core").encode()
            piece = piece[:1] + bytes([len(name)]) + name
        if op.name != "FRAME":  # whose length would be wrong, and which may be left out
            out += piece.replace(b"cnumpy._core", b"cnumpy.core")
    assert b"numpy.core" in out
    assert b"numpy._core" not in out
    return out


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("written_by", [bytes, as_numpy_1])
def test_edm2s_pickles_are_read(protocol: int, written_by: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "edm2.pkl"
    data = pickle.dumps({"fid": {"mu": MU, "sigma": SIGMA}, "fd_dinov2": {"mu": MU + 1, "sigma": 2 * SIGMA}}, protocol)
    path.write_bytes(written_by(data))
    found = read_statistics(path)
    assert list(found) == ["inception", "dinov2"]
    np.testing.assert_array_equal(found["inception"].mean, MU)
    np.testing.assert_array_equal(found["dinov2"].covariance, 2 * SIGMA)


class Shell:
    """What a hostile pickle holds: a call that the reader would make."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def refuses(path: Path, *says: str) -> None:
    with pytest.raises(UsageError) as error:
        read_statistics(path)
    assert "\n" not in str(error.value)
    for words in (path.name, *says):
        assert words in str(error.value)


@pytest.mark.parametrize("where", ["alone", "beside", "inside"])
def test_a_pickle_that_imports_is_refused_and_runs_nothing(where: str, tmp_path: Path) -> None:
    path, proof = tmp_path / "evil.pkl", tmp_path / "proof"
    shell, array = Shell(f"touch {proof}"), np.array([Shell(f"touch {proof}")], dtype=object)
    beside = {"fid": {"mu": MU, "sigma": SIGMA}, "extra": shell}
    path.write_bytes(pickle.dumps({"alone": shell, "beside": beside, "inside": {"fid": {"mu": array}}}[where]))
    refuses(path, "it tries to import", "system")
    assert not proof.exists()
    pickle.loads(path.read_bytes())  # which any other reader would have run
    assert proof.exists()


@pytest.mark.parametrize("name", ["load", "fromfile", "loads", "__loader__", "f2py.crackfortran.getlincoef"])
def test_numpys_own_names_are_no_way_in(name: str, tmp_path: Path) -> None:
    path = tmp_path / "evil.pkl"
    path.write_bytes(b"\x80\x04\x8c\x05numpy\x8c" + bytes([len(name)]) + name.encode() + b"\x93.")
    refuses(path, f"it tries to import numpy.{name}")


class Forged:
    """An array whose objects are whatever lies where its bytes point to."""

    def __reduce__(self) -> Any:
        return np.ndarray, ((1,), np.dtype(object), b"\x10" * 8)


def test_bytes_are_never_taken_for_pointers(tmp_path: Path) -> None:
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"fid": {"mu": Forged(), "sigma": SIGMA}}))
    refuses(path, "cannot be read as statistics")
    path.write_bytes(pickle.dumps({"fid": {"mu": np.array([None, 1])}}))
    refuses(path, "cannot be read as statistics")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no sigma": ({"mu": MU}, "lacks sigma"),
    "neither": ({"feats": X[:1]}, "lacks mu and sigma"),
    "sizes": ({"mu": MU[1:], "sigma": SIGMA}, "mu has 4 entries, sigma is (5, 5)"),
    "feats": ({"mu": MU, "sigma": SIGMA, "feats": X[:, 1:]}, "mu has 5 entries"),
    "axes": ({"mu": MU[None], "sigma": SIGMA}, "mu is float64 (1, 5): give real numbers along 1 axes"),
    "text": ({"mu": MU.astype(str), "sigma": SIGMA}, "give real numbers"),
    "complex": ({"mu": MU, "sigma": SIGMA + 0j}, "sigma is complex128"),
    "empty": ({"mu": MU[:0], "sigma": SIGMA[:0, :0]}, "mu is float64 (0,)"),
    "n": ({"mu": MU, "sigma": SIGMA, "feats": X[:-1], "tags": TAGS.model_dump_json()}, "says that they are 40"),
    "nan": ({"mu": MU * np.nan, "sigma": SIGMA}, "mu has entries that are NaN or infinite"),
    "infinite": ({"mu": MU, "sigma": SIGMA * np.inf}, "sigma has entries that are NaN or infinite"),
    "askew": ({"mu": MU, "sigma": np.triu(SIGMA)}, "it is no covariance"),
    "negative": ({"mu": MU, "sigma": -SIGMA}, "it is no covariance"),
    "tags": ({"mu": MU, "sigma": SIGMA, "tags": "{"}, "its tags cannot be read"),
    "a tag": ({"mu": MU, "sigma": SIGMA, "tags": TAGS.model_dump_json().replace("40", "1")}, "tags cannot be read: n"),
}


@pytest.mark.parametrize("kind", ["npz", "pkl"])
@pytest.mark.parametrize(("held", "says"), WRONG.values(), ids=WRONG)
def test_what_is_no_mean_and_covariance_is_refused(kind: str, held: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = tmp_path / f"wrong.{kind}"
    if kind == "npz":
        np.savez(path, **held)
    else:
        path.write_bytes(pickle.dumps({"fid": held}))
    refuses(path, says)


def test_broken_files_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, mu=MU, sigma=SIGMA)
    whole, path = buffer.getvalue(), tmp_path / "broken.npz"
    flipped = bytearray(whole)
    flipped[200] ^= 255
    for data in (
        b"",
        b"PK\x03\x04",
        whole[:-30],
        whole[: len(whole) // 2],
        bytes(flipped),
        b"\x93NUMPY",
        pickle.dumps(1),
    ):
        path.write_bytes(data)
        refuses(path, "cannot be read as npz")
    np.save(tmp_path / "alone", MU)
    (tmp_path / "alone.npy").rename(path)
    refuses(path, "cannot be read as npz")
    path = tmp_path / "broken.pkl"
    for data in (b"", b"\x80\x04", b"no pickle", pickle.dumps({"fid": {"mu": MU}})[:-10], pickle.dumps([])[:-1]):
        path.write_bytes(data)
        refuses(path, "cannot be read as statistics")
    for value in ({}, [], 3, {"fid": MU}, {"mu": MU, "sigma": SIGMA}):
        path.write_bytes(pickle.dumps(value))
        refuses(path, "holds no statistics as EDM2 writes them")


def test_files_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "there.npz").write_text("mine")
    cases: list[tuple[str, list[Statistics], str, str]] = [
        ("a.npz", [tagged()], "csv", "format 'csv' is none of npz, pkl, adm"),
        ("a.pkl", [tagged()], "npz", "goes into a file that ends in .npz"),
        ("a.npz", [tagged(), tagged("pixels")], "npz", "for 2 give a file ending in .pkl"),
        ("a.npz", [tagged()], "adm", "holds the images too"),
        ("there.npz", [tagged()], "npz", "is there already"),
        ("file/a.npz", [tagged()], "npz", "is a file, not a folder"),
    ]
    for file, statistics, form, says in cases:
        with pytest.raises(UsageError) as error:
            write_statistics(tmp_path / file, statistics, form)
        assert says in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "there.npz"]
    assert (tmp_path / "there.npz").read_text() == "mine"
