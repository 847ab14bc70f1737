"""Cityscapes (Cordts et al., 2016): 2,975 street scenes to train and 500 to validate, 19 classes."""

from pathlib import Path

import numpy as np

from tuckprop.data._base import IGNORED, DataSet, Pictures, datasets
from tuckprop.data._imagenet_statistics import MEAN, STD
from tuckprop.data._places import Place
from tuckprop.data.scenes import Mask, ScenePictures, read_png_mask, renumbered
from tuckprop.errors import DataError

# The official label of each class that counts; the other 15 of the 34 are ignored.
_LABELS = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19,
    "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26, "truck": 27,
    "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
}  # fmt: skip
CLASSES = tuple(_LABELS)
_TABLE = np.full(34, IGNORED, np.uint8)
_TABLE[list(_LABELS.values())] = range(len(_LABELS))
_IMAGE, _MASK = "_leftImg8bit.png", "_gtFine_labelIds.png"
PLACE = Place(
    title="Cityscapes",
    cache="cityscapes",
    inner="cityscapes",
    marks=("leftImg8bit/train", "leftImg8bit/val", "gtFine/train", "gtFine/val"),
    source=(
        "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from https://www.cityscapes-dataset.com, which asks "
        "for registration"
    ),
)


def read_cityscapes(path: Path | None) -> tuple[Pictures, tuple[str, ...]]:
    """Return the training images, and the names of the 19 classes.

    Args:
        path: The folder with leftImg8bit and gtFine; None stands for the user's cache folder.

    Raises:
        DataError: Files are missing; the text says what to fetch.
    """
    return _read(path, "train"), CLASSES


def read_cityscapes_val(path: Path | None) -> Pictures:
    """Return the official validation images, as `read_cityscapes` does.

    Raises:
        DataError: Files are missing; the text says what to fetch.
    """
    return _read(path, "val")


def _read(path: Path | None, part: str) -> Pictures:
    root = PLACE.find(path)
    folder = root / "leftImg8bit" / part
    # CITY/CITY_NUMBER_NUMBER
    names = sorted(file.relative_to(folder).as_posix().removesuffix(_IMAGE) for file in folder.glob(f"*/*{_IMAGE}"))
    if not names:
        raise DataError(f"Cityscapes: expected images as CITY/NAME{_IMAGE} in {folder}, there are none")
    masks = [root / "gtFine" / part / f"{name}{_MASK}" for name in names]
    return ScenePictures(folder, [f"{name}{_IMAGE}" for name in names], masks, _read_mask, len(CLASSES), folder)


def _read_mask(path: Path) -> Mask:
    return renumbered(read_png_mask(path), _TABLE, path)


datasets.add(
    "cityscapes",
    DataSet(
        read_cityscapes,
        channels=3,
        resolution=512,
        mean=MEAN,
        std=STD,
        network="pspnet_r18",
        read_val=read_cityscapes_val,
        per_pixel=True,
    ),
)
