"""Oxford Flowers 102 (Nilsback and Zisserman, 2008): 1,020 images of 102 flowers to train, as many to validate."""

from pathlib import Path

import numpy as np
import torch

from tuckprop.data._archive import Archive
from tuckprop.data._base import DataSet, Pictures, datasets
from tuckprop.data._imagenet_statistics import MEAN, STD
from tuckprop.data._lists import list_pictures
from tuckprop.data._matlab import read_mat
from tuckprop.data._places import Place
from tuckprop.errors import DataError

_CLASSES = 102
_LABELS, _SPLIT = "imagelabels.mat", "setid.mat"
_SERVER = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102"
PLACE = Place(
    title="Flowers 102",
    cache="flowers102",
    inner="flowers-102",
    marks=("jpg", _LABELS, _SPLIT),
    source=f"102flowers.tgz, {_LABELS} and {_SPLIT} from {_SERVER}",
    archives=(
        Archive(f"{_SERVER}/102flowers.tgz", md5="52808999861908f626f3c1f4e79d11fa", folder="flowers-102"),
        Archive(f"{_SERVER}/{_LABELS}", md5="e0620be6f572b9609742df49c70aed4d", folder="flowers-102"),
        Archive(f"{_SERVER}/{_SPLIT}", md5="a5357ecc9cb78c4bef273ce3793fc85c", folder="flowers-102"),
    ),
)


def read_flowers102(path: Path | None) -> tuple[Pictures, tuple[str, ...]]:
    """Return the training images, and the classes, which have numbers for names.

    Args:
        path: The folder with jpg, imagelabels.mat and setid.mat, or the one that holds it as flowers-102. None
            downloads them, once, into the user's cache folder.

    Raises:
        ConfigError: scipy is not installed.
        DataError: Files are missing or damaged; the text says what to fetch.
    """
    return _read(path, "trnid"), tuple(str(number) for number in range(1, _CLASSES + 1))


def read_flowers102_val(path: Path | None) -> Pictures:
    """Return the data set's own validation images, as `read_flowers102` does.

    Raises:
        ConfigError: scipy is not installed.
        DataError: Files are missing or damaged; the text says what to fetch.
    """
    return _read(path, "valid")


def _read(path: Path | None, part: str) -> Pictures:
    folder = PLACE.find(path)
    labels, chosen = _whole(folder / _LABELS, "labels"), _whole(folder / _SPLIT, part)
    wrong = labels[(labels < 1) | (labels > _CLASSES)]
    if len(wrong):
        raise DataError(
            f"{folder / _LABELS}: expected labels from 1 to {_CLASSES}, got {wrong[0]}; fetch the file again"
        )
    wrong = chosen[(chosen < 1) | (chosen > len(labels))]
    if len(wrong):
        raise DataError(
            f"{folder / _SPLIT}: {part}: expected images from 1 to {len(labels)}, got {wrong[0]}; fetch the file again"
        )
    names = [f"image_{number:05}.jpg" for number in chosen]
    return list_pictures(folder / "jpg", names, torch.from_numpy(labels[chosen - 1] - 1), folder / _SPLIT)


def _whole(path: Path, name: str) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """Return a list of whole numbers."""
    values = np.atleast_1d(read_mat(path, name)[0])
    if values.ndim != 1 or values.dtype.kind not in "iuf" or (values != values.round()).any():
        raise DataError(f"{path}: {name}: expected a list of whole numbers, got {values.dtype} {values.shape}")
    return values.astype(np.int64)


datasets.add(
    "flowers102",
    DataSet(
        read_flowers102,
        channels=3,
        resolution=224,
        mean=MEAN,
        std=STD,
        network="mcunet",
        read_val=read_flowers102_val,
    ),
)
