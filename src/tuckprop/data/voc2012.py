"""PASCAL VOC 2012 segmentation (Everingham et al.), with the masks of SBD (Hariharan et al., 2011) where they are.

VOC alone has 1,464 images to train. With SBD beside it there are 10,582, the "VOC12Aug" of the paper: all of either,
without VOC's 1,449 validation images.
"""

import os
import warnings
from pathlib import Path

import numpy as np

from tuckprop.data._archive import Archive
from tuckprop.data._base import DataSet, Pictures, datasets
from tuckprop.data._imagenet_statistics import MEAN, STD
from tuckprop.data._lists import read_rows
from tuckprop.data._matlab import read_mat
from tuckprop.data._places import Place
from tuckprop.data.scenes import Mask, ScenePictures, read_png_mask
from tuckprop.errors import DataError, TuckpropWarning

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_LISTS = "ImageSets/Segmentation"
_SBD = "benchmark_RELEASE/dataset"
PLACE = Place(
    title="VOC 2012",
    cache="voc2012",
    inner="VOCdevkit/VOC2012",
    marks=("JPEGImages", "SegmentationClass", f"{_LISTS}/train.txt", f"{_LISTS}/val.txt"),
    source=(
        "VOCtrainval_11-May-2012.tar from https://thor.robots.ox.ac.uk/pascal/VOC/voc2012 (and for VOC12Aug SBD's "
        "benchmark.tgz, whose benchmark_RELEASE goes beside VOCdevkit)"
    ),
    archives=(
        Archive(
            "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
            md5="6cd6e144f989b92b3379bac3b3de84fd",
        ),
        Archive(
            "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
            md5="82b4d87ceb2ed10f6038a1cba92111cb",
        ),
    ),
)


def read_voc2012(path: Path | None) -> tuple[Pictures, tuple[str, ...]]:
    """Return the training images and the names of the 21 classes; with SBD's images where they are.

    Args:
        path: The folder with JPEGImages, or one that holds it as VOCdevkit/VOC2012. SBD is looked for beside VOCdevkit,
            VOC2012, or in VOC2012, as benchmark_RELEASE/dataset, and missed with a TuckpropWarning. None downloads
            both, once, into the user's cache folder.

    Raises:
        DataError: Files are missing; the text says what to fetch.
    """
    # Absolute, so that its parents are known where the path is such as "."; links stay as they are.
    root = Path(os.path.abspath(PLACE.find(path)))
    listed = root / _LISTS / "train.txt"
    names = _names(listed)
    images = [f"JPEGImages/{name}.jpg" for name in names]
    masks = [root / "SegmentationClass" / f"{name}.png" for name in names]
    sbd = next((folder / _SBD for folder in (root.parent.parent, root.parent, root) if (folder / _SBD).is_dir()), None)
    if sbd is None:
        warnings.warn(
            f"VOC 2012: {_SBD} is not beside {root}, so there are {len(names)} images to train on; the paper trains on "
            "VOC12Aug, 10,582 of them: fetch SBD's benchmark.tgz and put its benchmark_RELEASE beside VOCdevkit",
            TuckpropWarning,
            stacklevel=2,
        )
    else:
        # VOC's own mask is the better one where both have an image.
        taken = {*names, *_names(root / _LISTS / "val.txt")}
        more = sorted({*_names(sbd / "train.txt"), *_names(sbd / "val.txt")} - taken)
        images += [str(sbd / "img" / f"{name}.jpg") for name in more]
        masks += [sbd / "cls" / f"{name}.mat" for name in more]
    return ScenePictures(root, images, masks, _read_mask, len(CLASSES), listed), CLASSES


def read_voc2012_val(path: Path | None) -> Pictures:
    """Return VOC's 1,449 validation images, as `read_voc2012` does.

    Raises:
        DataError: Files are missing; the text says what to fetch.
    """
    root = PLACE.find(path)
    listed = root / _LISTS / "val.txt"
    names = _names(listed)
    masks = [root / "SegmentationClass" / f"{name}.png" for name in names]
    return ScenePictures(root, [f"JPEGImages/{name}.jpg" for name in names], masks, _read_mask, len(CLASSES), listed)


def _names(path: Path) -> list[str]:
    return [name for (name,) in read_rows(path, 1)]


def _read_mask(path: Path) -> Mask:
    if path.suffix == ".png":
        return read_png_mask(path)
    (found,) = read_mat(path, "GTcls")
    try:
        mask = np.asarray(found["Segmentation"].item())
    except (IndexError, KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path}: expected the mask GTcls.Segmentation: {error}") from error
    if mask.dtype != np.uint8 or mask.ndim != 2:
        raise DataError(f"{path}: expected GTcls.Segmentation as uint8 [height, width], got {mask.dtype} {mask.shape}")
    return mask


datasets.add(
    "voc2012",
    DataSet(
        read_voc2012,
        channels=3,
        resolution=512,
        mean=MEAN,
        std=STD,
        network="pspnet_r18",
        read_val=read_voc2012_val,
        per_pixel=True,
    ),
)
