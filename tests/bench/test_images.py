"""Sets of images: the same wherever they lie, and one clear line for what is no such set."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from bench.errors import UsageError
from bench.files import sha256
from bench.images import ArrayImages, Bytes, DatasetImages, Images, open_images
from solvers import UnknownNameError

N, HEIGHT, WIDTH = 7, 6, 5


@pytest.fixture
def pixels() -> Bytes:
    return np.random.default_rng(0).integers(0, 256, (N, 3, HEIGHT, WIDTH), dtype=np.uint8)


def png(image: Bytes) -> bytes:
    """An image (C, H, W) as a PNG."""
    file = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(file, "PNG")
    return file.getvalue()


def folder(path: Path, images: Bytes) -> Path:
    for i, image in enumerate(images):
        inner = path / f"{i // 3:02d}"
        inner.mkdir(parents=True, exist_ok=True)
        (inner / f"{i:05d}.png").write_bytes(png(image))
    return path


def table(path: Path, images: Bytes, **columns: Any) -> Path:
    pq.write_table(pa.table({"png": [png(image) for image in images], **columns}), path, row_group_size=3)
    return path


def hugging_face(path: Path, images: Bytes) -> Path:
    pq.write_table(pa.table({"image": [{"bytes": png(x), "path": None} for x in images], "label": [0] * N}), path)
    return path


def archive(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def array(path: Path, images: Any) -> Path:
    np.save(path, images)
    return path


PLACES: dict[str, Callable[[Path, Bytes], Path]] = {
    "folder": lambda path, x: folder(path / "real", x),
    "parquet": lambda path, x: table(path / "real.parquet", x),
    "hugging face": lambda path, x: hugging_face(path / "hf.parquet", x),
    "npz of ADM": lambda path, x: archive(path / "adm.npz", arr_0=x.transpose(0, 2, 3, 1), arr_1=np.arange(N)),
    "npz": lambda path, x: archive(path / "mine.npz", samples=x),
    "npy": lambda path, x: array(path / "mine.npy", x),
}


def everything(images: Images, size: int = 3) -> Bytes:
    batches = list(images.batches(size))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    return np.concatenate(batches)


def same(images: Images, expected: Bytes) -> None:
    assert (len(images), images.shape) == (len(expected), expected.shape[1:])
    assert images.digest == sha256(expected.tobytes())
    np.testing.assert_array_equal(everything(images), expected)


@pytest.mark.parametrize("place", PLACES)
def test_images_are_the_same_set_wherever_they_lie(place: str, pixels: Bytes, tmp_path: Path) -> None:
    text = str(PLACES[place](tmp_path, pixels))
    same(open_images(text), pixels)
    assert open_images(text).name == text


@pytest.mark.parametrize(
    "item",
    [
        torch.from_numpy,
        lambda x: (torch.from_numpy(x), 3),
        lambda x: (Image.fromarray(x.transpose(1, 2, 0)), "cat"),
        lambda x: x,
    ],
)
def test_a_dataset_object_is_a_set_of_images(item: Callable[[Bytes], Any], pixels: Bytes) -> None:
    same(DatasetImages("mine", [item(image) for image in pixels]), pixels)


@pytest.mark.parametrize("place", PLACES)
def test_grey_images_stay_grey(place: str, pixels: Bytes, tmp_path: Path) -> None:
    same(open_images(str(PLACES[place](tmp_path, pixels[:, :1]))), pixels[:, :1])


def test_one_coloured_image_makes_all_coloured(pixels: Bytes, tmp_path: Path) -> None:
    mixed = pixels.copy()
    mixed[:-1] = mixed[:-1, :1]
    path = folder(tmp_path / "real", mixed)
    for i in range(N - 1):
        (path / f"{i // 3:02d}" / f"{i:05d}.png").write_bytes(png(mixed[i, :1]))
    same(open_images(str(path)), mixed)


def test_palettes_and_transparency_become_rgb(tmp_path: Path) -> None:
    rgb = np.zeros((HEIGHT, WIDTH, 3), np.uint8) + np.array([10, 200, 30], np.uint8)
    Image.fromarray(rgb).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "a.png", transparency=b"\x00")
    Image.fromarray(np.dstack([rgb, rgb[..., 0]])).save(tmp_path / "b.png")
    Image.fromarray(rgb).save(tmp_path / "c.bmp")
    images = open_images(str(tmp_path))
    assert images.shape == (3, HEIGHT, WIDTH)
    np.testing.assert_array_equal(next(images.batches(3)), np.stack([rgb.transpose(2, 0, 1)] * 3))


def test_black_and_white_is_grey(tmp_path: Path) -> None:
    for name in "ab":
        Image.fromarray(np.eye(4, dtype=bool)).save(tmp_path / f"{name}.png")
    np.testing.assert_array_equal(next(open_images(str(tmp_path)).batches(2)), [[np.eye(4) * 255]] * 2)


def test_what_is_no_image_in_a_folder_does_not_count(pixels: Bytes, tmp_path: Path) -> None:
    path = folder(tmp_path, pixels)
    (path / "labels.json").write_text("{}")
    (path / ".hidden.png").write_bytes(b"no image")
    same(open_images(str(path)), pixels)


def test_a_changed_folder_is_another_set(pixels: Bytes, tmp_path: Path) -> None:
    path = folder(tmp_path, pixels)
    before = open_images(str(path)).digest
    changed = path / "00" / "00001.png"
    changed.write_bytes(png(255 - pixels[1]))
    os.utime(changed, ns=(1, 1))
    after = open_images(str(path)).digest
    changed.unlink()
    assert len({before, after, open_images(str(path)).digest}) == 3


def test_a_known_folder_is_not_decoded_to_be_opened(pixels: Bytes, tmp_path: Path) -> None:
    path = folder(tmp_path, pixels)
    before, file = open_images(str(path)), path / "00" / "00001.png"
    stat = file.stat()
    file.write_bytes(bytes(stat.st_size))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again = open_images(str(path))
    assert (again.shape, again.digest, len(again)) == (before.shape, before.digest, len(before))


def test_a_cache_that_cannot_be_written_does_no_harm(
    pixels: Bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "file" / "cache"))
    same(open_images(str(folder(tmp_path / "real", pixels))), pixels)


def test_rows_and_columns_of_a_table_are_chosen(pixels: Bytes, tmp_path: Path) -> None:
    split = pa.array(["train", "test"] * 3 + ["train"]).dictionary_encode()
    label = pa.array([0, 0, 1, 1, 2, 2, 0], pa.int8())
    path = table(tmp_path / "a.parquet", pixels, split=split, label=label)

    def chosen(options: str) -> Bytes:
        return next(open_images(f"{path}({options})").batches(N))

    np.testing.assert_array_equal(chosen("split=train"), pixels[::2])
    np.testing.assert_array_equal(chosen("label=0, split=train"), pixels[[0, 6]])
    np.testing.assert_array_equal(chosen("split=test, n=3"), pixels[1::2])
    other = table(tmp_path / "b.parquet", pixels, mask=[png(255 - image) for image in pixels])
    np.testing.assert_array_equal(next(open_images(f"{other}(images=mask)").batches(N)), 255 - pixels)


def test_arrays_are_chosen_by_name(pixels: Bytes, tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", real=pixels, fake=255 - pixels)
    same(open_images(f"{path}(images=fake, n={N})"), 255 - pixels)


def test_parentheses_in_a_name_are_part_of_it(pixels: Bytes, tmp_path: Path) -> None:
    same(open_images(str(folder(tmp_path / "real (copy)", pixels))), pixels)


BAD_ARRAYS = {
    "float32": (np.linspace(-1, 1, 54, dtype=np.float32).reshape(2, 3, 3, 3), "holds float32 from -1 to 1"),
    "nan": (np.full((2, 3, 4, 4), np.nan), "holds float64, some NaN or infinite"),
    "infinite": (np.full((2, 3, 4, 4), np.inf, np.float32), "holds float32, some NaN or infinite"),
    "int64": (np.full((2, 3, 4, 4), 255), "holds int64 from 255 to 255"),
    "flat": (np.zeros((2, 48), np.uint8), "has shape (2, 48)"),
    "alpha": (np.zeros((2, 8, 8, 4), np.uint8), "has shape (2, 8, 8, 4)"),
    "either": (np.zeros((2, 3, 8, 3), np.uint8), "has shape (2, 3, 8, 3)"),
    "objects": (np.array([None, 1]), "cannot be read as np"),
    "one": (np.zeros((1, 3, 4, 4), np.uint8), "holds one image: give 2 or more"),
    "none": (np.zeros((0, 3, 4, 4), np.uint8), "holds no images: give 2 or more"),
}


@pytest.mark.parametrize("kind", ["npz", "npy"])
@pytest.mark.parametrize(("given", "says"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_arrays_that_are_no_images_are_refused(kind: str, given: Any, says: str, tmp_path: Path) -> None:
    path = tmp_path / f"bad.{kind}"
    (array if kind == "npy" else lambda path, x: archive(path, images=x))(path, given)
    refuses(str(path), says)


def refuses(text: str, *says: str) -> None:
    with pytest.raises((UsageError, UnknownNameError)) as error:
        open_images(text)
    assert "\n" not in str(error.value)
    for words in (text.partition("(")[0], *says):
        assert words in str(error.value)


def test_folders_that_are_no_sets_are_refused(pixels: Bytes, tmp_path: Path) -> None:
    refuses(str(tmp_path), "holds no images: give 2 or more")
    (tmp_path / "a.png").write_bytes(png(pixels[0]))
    refuses(str(tmp_path), "holds one image: give 2 or more")
    (tmp_path / "b.png").write_bytes(png(pixels[0, :, :3, :4]))
    refuses(str(tmp_path), "a.png is 5x6", "b.png is 4x3")
    (tmp_path / "b.png").write_bytes(png(pixels[0])[:-30])
    refuses(str(tmp_path), "b.png cannot be read as an image")
    (tmp_path / "b.png").write_bytes(b"")
    refuses(str(tmp_path), "b.png cannot be read as an image")
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint16)).save(tmp_path / "b.png")
    refuses(str(tmp_path), "b.png has more than 8 bits a channel")


def test_tables_that_are_no_sets_are_refused(pixels: Bytes, tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", pixels, label=list(range(N)))
    refuses(f"{path}(label=9)", "no row has label=9")
    refuses(f"{path}(label=3)", "holds one image")
    refuses(f"{path}(label=cat)", "column 'label' holds int64, not 'cat'")
    refuses(f"{path}(lable=3)", "did you mean 'label'?")
    refuses(f"{path}(images=label)", "column 'label' holds int64, not images' bytes")
    refuses(f"{path}(images=pgn)", "did you mean 'png'?")
    refuses(f"{path}(n=50000)", f"is of {N} images, not of n=50000")
    refuses(f"{path}(", "is not of the form name or name(option=value, ...)")
    refuses(str(table(tmp_path / "two.parquet", pixels, mask=[b""] * N)), "several columns of bytes: choose one")
    pq.write_table(pa.table({"label": [1, 2]}), tmp_path / "none.parquet")
    refuses(str(tmp_path / "none.parquet"), "no image column", "its columns: label")
    pq.write_table(pa.table({"image": [{"bytes": b"x", "path": "a"}, {"bytes": None, "path": "b"}]}), tmp_path / "p")
    (tmp_path / "p").rename(tmp_path / "paths.parquet")
    refuses(str(tmp_path / "paths.parquet"), "image 0 cannot be read as an image")
    (tmp_path / "corrupt.parquet").write_bytes(path.read_bytes()[:-40])
    refuses(str(tmp_path / "corrupt.parquet"), "cannot be read as parquet")


def test_a_table_of_paths_alone_is_refused(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = pa.array([{"bytes": None, "path": "a.png"}, {"bytes": None, "path": "b.png"}], kind)
    pq.write_table(pa.table({"image": rows}), tmp_path / "paths.parquet")
    refuses(str(tmp_path / "paths.parquet"), "must hold the images' bytes, not their paths alone")


def test_other_files_are_refused(pixels: Bytes, tmp_path: Path) -> None:
    refuses(str(tmp_path / "nothing"), "there is no", "give a folder of images, a parquet file")
    refuses("a" * 5000, "there is no")
    (tmp_path / "images.zip").write_bytes(b"")
    refuses(str(tmp_path / "images.zip"), "is no set of images; give a folder of images")
    path = archive(tmp_path / "a.npz", real=pixels, fake=pixels)
    refuses(str(path), "holds real, fake: name the images")
    refuses(f"{path}(images=reel)", "did you mean 'real'?")
    refuses(f"{path}(split=train)", "split means nothing here; options are images and n")
    (tmp_path / "b.npz").write_bytes(path.read_bytes()[:100])
    refuses(str(tmp_path / "b.npz"), "cannot be read as npz")
    for data in (b"\x93NUMPY", b"\x93NUMPY\x01\x00\x04\x00{(( "):
        (tmp_path / "b.npy").write_bytes(data)
        refuses(str(tmp_path / "b.npy"), "cannot be read as npy")


@pytest.mark.parametrize(
    ("item", "says"),
    [
        (torch.zeros(3, 4, 4), "item 0 holds float32 from 0 to 0"),
        (torch.zeros(4, 4, dtype=torch.uint8), "item 0 has shape (4, 4)"),
        ({"image": None}, "item 0 is a dict"),
        ((None, 3), "item 0 is a NoneType"),
    ],
)
def test_datasets_of_something_else_are_refused(item: Any, says: str) -> None:
    with pytest.raises(UsageError, match="mine item 0") as error:
        DatasetImages("mine", [item, item])
    assert says in str(error.value)


def test_images_in_memory_are_a_set(pixels: Bytes) -> None:
    same(ArrayImages("mine", pixels), pixels)
