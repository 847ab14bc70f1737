"""ADE20K, the scene parsing benchmark of 2016 (Zhou et al.): 20,210 images to train, 2,000 to validate, 150 classes."""

from pathlib import Path

import numpy as np

from tuckprop.data._archive import Archive
from tuckprop.data._base import IGNORED, DataSet, Pictures, datasets
from tuckprop.data._imagenet_statistics import MEAN, STD
from tuckprop.data._places import Place
from tuckprop.data.scenes import Mask, ScenePictures, read_png_mask, renumbered
from tuckprop.errors import DataError

_CLASSES = 150
# 0 is "something else"; classes count from 1.
_TABLE = np.array([IGNORED, *range(_CLASSES)], np.uint8)
PLACE = Place(
    title="ADE20K",
    cache="ade20k",
    inner="ADEChallengeData2016",
    marks=("images/training", "images/validation", "annotations/training", "annotations/validation"),
    source="ADEChallengeData2016.zip from http://sceneparsing.csail.mit.edu",
    archives=(
        Archive(
            "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
            md5="7328b3957e407ddae1d3cbf487f149ef",
        ),
    ),
)


def read_ade20k(path: Path | None) -> tuple[Pictures, tuple[str, ...]]:
    """Return the training images, and the classes, which have numbers for names.

    Args:
        path: The folder with images and annotations, or the one that holds it as ADEChallengeData2016; None downloads
            it, once, into the user's cache folder.

    Raises:
        DataError: Files are missing; the text says what to fetch.
    """
    return _read(path, "training"), tuple(str(number) for number in range(1, _CLASSES + 1))


def read_ade20k_val(path: Path | None) -> Pictures:
    """Return the official validation images, as `read_ade20k` does.

    Raises:
        DataError: Files are missing; the text says what to fetch.
    """
    return _read(path, "validation")


def _read(path: Path | None, part: str) -> Pictures:
    root = PLACE.find(path)
    folder = root / "images" / part
    files = sorted(folder.glob("*.jpg"))
    if not files:
        raise DataError(f"ADE20K: expected images as NAME.jpg in {folder}, there are none")
    masks = [root / "annotations" / part / f"{file.stem}.png" for file in files]
    return ScenePictures(folder, [file.name for file in files], masks, _read_mask, _CLASSES, folder)


def _read_mask(path: Path) -> Mask:
    return renumbered(read_png_mask(path), _TABLE, path)


datasets.add(
    "ade20k",
    DataSet(
        read_ade20k,
        channels=3,
        resolution=512,
        mean=MEAN,
        std=STD,
        network="pspnet_r18",
        read_val=read_ade20k_val,
        per_pixel=True,
    ),
)
