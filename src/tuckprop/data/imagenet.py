"""ImageNet (ILSVRC 2012, Russakovsky et al., 2015): 1.28 million images of 1000 classes, 50,000 to validate."""

from pathlib import Path

import torch

from tuckprop.data._base import DataSet, Pictures, datasets
from tuckprop.data._imagenet_statistics import MEAN, STD
from tuckprop.data._lists import list_pictures, read_number, read_rows
from tuckprop.data._matlab import read_mat
from tuckprop.data._places import Place
from tuckprop.data.augment import crop_and_flip
from tuckprop.data.fit import centre_crop
from tuckprop.data.folder import read_folder
from tuckprop.errors import DataError

_DEVKIT = "ILSVRC2012_devkit_t12/data"
_TRUTH, _META = f"{_DEVKIT}/ILSVRC2012_validation_ground_truth.txt", f"{_DEVKIT}/meta.mat"
PLACE = Place(
    title="ImageNet",
    cache="imagenet",
    inner="imagenet",
    marks=("train",),
    source=(
        "ILSVRC2012_img_train.tar (one folder a class, train/n01440764 and so on), ILSVRC2012_img_val.tar (val/) and "
        "ILSVRC2012_devkit_t12.tar.gz from https://image-net.org, which asks for registration"
    ),
)


def read_imagenet(path: Path | None) -> tuple[Pictures, tuple[str, ...]]:
    """Return the training images, and the classes: WordNet's numbers, sorted, as all pretrained networks have them.

    Args:
        path: The folder with train/WNID/NAME.JPEG; None stands for the user's cache folder.

    Raises:
        DataError: Files are missing or misplaced; the text says what to fetch.
    """
    pictures, classes = read_folder(PLACE.find(path) / "train")
    return pictures.fitted(centre_crop), classes


def read_imagenet_val(path: Path | None) -> Pictures:
    """Return the validation images.

    Args:
        path: The folder with val: one folder a class, or, beside ILSVRC's development kit, all images as they come.

    Raises:
        ConfigError: scipy is not installed, which the development kit needs.
        DataError: Files are missing, misplaced or damaged; the text says what to fetch.
    """
    root = PLACE.find(path)
    folder = root / "val"
    if not folder.is_dir():
        raise DataError(f"ImageNet: {root} lacks val (or take half of the training images: --half); {PLACE.help()}")
    classes = tuple(sorted(entry.name for entry in (root / "train").iterdir() if entry.is_dir()))
    names = sorted(file.name for file in folder.glob("*.JPEG"))
    if not names:
        return read_folder(folder, classes=classes)[0].fitted(centre_crop)
    return list_pictures(folder, names, _labels(root, len(names), classes), root / _TRUTH).fitted(centre_crop)


def _labels(root: Path, images: int, classes: tuple[str, ...]) -> torch.Tensor:
    """Return the classes of the validation images, in the order of their names."""
    truth, meta = root / _TRUTH, root / _META
    if not truth.is_file() or not meta.is_file():
        raise DataError(
            f"ImageNet: the images in {root / 'val'} are in no folders, so their classes are needed from {truth} and "
            f"{meta}; {PLACE.help()}"
        )
    # The kit numbers classes in an order of its own; those with children are no classes but groups of them.
    wnids = {int(row[0]): str(row[1]) for row in read_mat(meta, "synsets")[0].tolist() if int(row[4]) == 0}
    label = {wnid: number for number, wnid in enumerate(classes)}
    strange = sorted(set(wnids.values()) ^ set(classes))
    if strange:
        raise DataError(f"ImageNet: {root / 'train'} and {meta} differ in their classes, such as {strange[0]}")
    numbers = [read_number(text, truth, "class", 1, len(wnids)) for (text,) in read_rows(truth, 1)]
    if len(numbers) != images:
        raise DataError(f"{truth}: expected one class for each of the {images} images in val, got {len(numbers)}")
    return torch.tensor([label[wnids[number]] for number in numbers], dtype=torch.int64)


datasets.add(
    "imagenet",
    DataSet(
        read_imagenet,
        channels=3,
        resolution=224,
        mean=MEAN,
        std=STD,
        network="mcunet",
        read_val=read_imagenet_val,
        augment=crop_and_flip,
    ),
)
