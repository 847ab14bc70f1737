"""CUB-200-2011 (Wah et al., 2011): 5,994 images of 200 species of birds for training."""

from pathlib import Path

import torch

from tuckprop.data._archive import Archive
from tuckprop.data._base import DataSet, Pictures, datasets
from tuckprop.data._imagenet_statistics import MEAN, STD
from tuckprop.data._lists import list_pictures, read_number, read_rows
from tuckprop.data._places import Place
from tuckprop.errors import DataError

_CLASSES = 200
_IMAGES, _LABELS, _SPLIT = "images.txt", "image_class_labels.txt", "train_test_split.txt"
PLACE = Place(
    title="CUB-200-2011",
    cache="cub200",
    inner="CUB_200_2011",
    marks=(_IMAGES, _LABELS, _SPLIT, "images"),
    source="CUB_200_2011.tgz from https://data.caltech.edu/records/65de6-vp158",
    archives=(
        Archive(
            "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
            md5="97eceeb196236b17998738112f37df78",
        ),
    ),
)


def read_cub200(path: Path | None) -> tuple[Pictures, tuple[str, ...]]:
    """Return the training images, and the names of the 200 classes.

    Args:
        path: The folder with images.txt, or the one that holds it; None downloads it, once, into the user's cache
            folder.

    Raises:
        DataError: Files are missing or damaged; the text says what to fetch.
    """
    folder = PLACE.find(path)
    names = dict(read_rows(folder / _IMAGES, 2))
    labels = {
        image: read_number(label, folder / _LABELS, f"class of image {image}", 1, _CLASSES) - 1
        for image, label in read_rows(folder / _LABELS, 2)
    }
    training = [
        image
        for image, part in read_rows(folder / _SPLIT, 2)
        if read_number(part, folder / _SPLIT, f"part of image {image}", 0, 1) == 1
    ]
    for file, known in ((_IMAGES, names), (_LABELS, labels)):
        absent = [image for image in training if image not in known]
        if absent:
            raise DataError(
                f"{folder / file}: expected all images of {_SPLIT}, image {absent[0]} is missing; fetch it again"
            )
    # A class has the name of its folder, such as 001.Black_footed_Albatross.
    classes = {labels[image]: name.partition("/")[0] for image, name in names.items() if image in labels}
    pictures = list_pictures(
        folder / "images",
        [names[image] for image in training],
        torch.tensor([labels[image] for image in training], dtype=torch.int64),
        folder / _IMAGES,
    )
    return pictures, tuple(classes.get(label, f"{label + 1:03}") for label in range(_CLASSES))


datasets.add("cub200", DataSet(read_cub200, channels=3, resolution=224, mean=MEAN, std=STD, network="mcunet"))
