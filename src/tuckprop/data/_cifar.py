"""The files that CIFAR-10 and CIFAR-100 come in: pickles of images of 32 x 32 and their labels."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tuckprop.data._pickles import read_pickle
from tuckprop.errors import DataError

SIDE = 32


def read_batch(path: Path, key: str, classes: int) -> tuple[Tensor, Tensor]:
    """Return images, uint8 [images, 3, 32, 32], and labels, int64 [images].

    Args:
        path: The file.
        key: What the labels are called in it.
        classes: How many there are.

    Raises:
        DataError: The file is missing or damaged, or a label is out of range.
    """
    batch = read_pickle(path)
    data, labels = batch.get("data"), batch.get(key)
    pixels = 3 * SIDE * SIDE
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != pixels:
        found = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise DataError(f"{path}: expected 'data' as uint8 [images, {pixels}], got {found}")
    if not isinstance(labels, list) or len(labels) != len(data):
        count = len(labels) if isinstance(labels, list) else type(labels).__name__
        raise DataError(f"{path}: expected a list of {len(data)} {key!r}, one an image, got {count}")
    wrong = [label for label in labels if not isinstance(label, int) or not 0 <= label < classes]
    if wrong:
        raise DataError(f"{path}: expected labels from 0 to {classes - 1}, got {wrong[0]!r}; fetch the file again")
    images = torch.from_numpy(np.array(data)).view(-1, 3, SIDE, SIDE)
    return images, torch.tensor(labels, dtype=torch.int64)
