"""CIFAR-10 (JPEG copy): real photographs, compressed once more than published, so that no number on them compares.

The images do not come with the package.  $FEWSTEP_CIFAR10 names a parquet file with the columns split (train or test),
label (0 to 9) and jpeg (an encoded 32x32 RGB image).
"""

import os
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bench.errors import UsageError
from bench.images import decode
from distill.batch import DATA, Draws

WHERE = "FEWSTEP_CIFAR10"
NAME = "CIFAR-10 (JPEG copy)"
SHAPE, CLASSES = (3, 32, 32), 10
Split = Literal["train", "test"]


@cache
def photographs(split: Split) -> tuple[Tensor, Tensor]:
    """Bytes (N, 3, 32, 32) and labels (N,) int64 of a split; raises UsageError for a file that has none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(os.environ.get(WHERE, ""))
    if not path.is_file():
        given = f"{WHERE}={path}: there is no such file" if os.environ.get(WHERE) else f"{WHERE} is not set"
        raise UsageError(f"{given}; give the parquet file of {NAME}, with columns split, label and jpeg")
    try:
        rows = pq.read_table(path, columns=["label", "jpeg"], filters=[("split", "=", split)])
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{path} is no parquet file of {NAME}: {str(error).splitlines()[0]}") from error
    labels = torch.from_numpy(rows["label"].to_numpy().astype(np.int64))
    images = [decode(f"{path} {split} {i}", BytesIO(jpeg.as_py())) for i, jpeg in enumerate(rows["jpeg"])]
    if (
        len(images) < 2
        or {image.shape for image in images} != {SHAPE}
        or not ((labels >= 0) & (labels < CLASSES)).all()
    ):
        raise UsageError(f"{path}: its {split} split is not 32x32 RGB images with labels from 0 to {CLASSES - 1}")
    return torch.from_numpy(np.stack(images)), labels


def training(draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
    """What students are shown: training photographs, half of them mirrored, with their labels."""
    images, labels = photographs("train")
    i = torch.from_numpy(draws.integers(DATA, len(images)))
    mirrored = torch.from_numpy(draws.uniform(DATA + 1) < 0.5)
    x = images[i].to(draws.device).float() / 127.5 - 1
    x = torch.where(mirrored.to(draws.device)[:, None, None, None], x.flip(3), x)
    return x, {"y": labels[i].to(draws.device)}
