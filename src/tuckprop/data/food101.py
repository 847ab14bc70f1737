"""Food-101 (Bossard et al., 2014): 75,750 images of 101 dishes for training."""

from pathlib import Path

import torch

from tuckprop.data._archive import Archive
from tuckprop.data._base import DataSet, Pictures, datasets
from tuckprop.data._imagenet_statistics import MEAN, STD
from tuckprop.data._lists import list_pictures, read_rows
from tuckprop.data._places import Place
from tuckprop.errors import DataError

_CLASSES = 101
_LIST, _NAMES = "meta/train.txt", "meta/classes.txt"
PLACE = Place(
    title="Food-101",
    cache="food101",
    inner="food-101",
    marks=("images", _LIST, _NAMES),
    source="food-101.tar.gz from https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101",
    archives=(Archive("http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz", md5="85eeb15f3717b99a5da872d97d918f87"),),
)


def read_food101(path: Path | None) -> tuple[Pictures, tuple[str, ...]]:
    """Return the training images, and the names of the 101 classes.

    Args:
        path: The folder with images and meta, or the one that holds it as food-101. None downloads them,
            once, into the user's cache folder.

    Raises:
        DataError: Files are missing or damaged; the text says what to fetch.
    """
    folder = PLACE.find(path)
    classes = tuple(name for (name,) in read_rows(folder / _NAMES, 1))
    if not len(set(classes)) == len(classes) == _CLASSES:
        raise DataError(f"{folder / _NAMES}: expected {_CLASSES} names, each once, got {len(set(classes))} names")
    number = {name: label for label, name in enumerate(classes)}
    names = [name for (name,) in read_rows(folder / _LIST, 1)]
    dishes = [name.partition("/")[0] for name in names]
    strange = [dish for dish in dishes if dish not in number]
    if strange:
        raise DataError(
            f"{folder / _LIST}: expected CLASS/IMAGE with a class of {_NAMES}, got {strange[0]!r}; unpack the data set "
            "again"
        )
    labels = torch.tensor([number[dish] for dish in dishes], dtype=torch.int64)
    return list_pictures(folder / "images", [f"{name}.jpg" for name in names], labels, folder / _LIST), classes


datasets.add("food101", DataSet(read_food101, channels=3, resolution=224, mean=MEAN, std=STD, network="mcunet"))
