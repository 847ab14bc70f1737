"""CIFAR-10 (Krizhevsky, 2009): 50,000 images of 32 x 32 for training, from files, a zip or the original batches."""

from pathlib import Path

import torch

from tuckprop.data._archive import Archive
from tuckprop.data._base import DataSet, Pictures, datasets
from tuckprop.data._cifar import SIDE, read_batch
from tuckprop.data._places import Place
from tuckprop.data.arrays import ArrayPictures
from tuckprop.data.folder import read_folder
from tuckprop.errors import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
PLACE = Place(
    title="CIFAR-10",
    cache="cifar10",
    inner="cifar-10-batches-py",
    marks=_BATCHES,
    source="cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html",
    archives=(
        Archive("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", md5="c58f30108f718f92721af3b95e74349a"),
    ),
)


def read_cifar10(path: Path | None) -> tuple[Pictures, tuple[str, ...]]:
    """Return the training images.

    Args:
        path: The original Python batches, or the folder that holds theirs, or images as `read_folder` takes them. None
            downloads the original, once, into the user's cache folder.

    Returns:
        The images, and the names of the classes.

    Raises:
        DataError: Nothing is there, or it is not laid out as CIFAR-10 is; the text says what to fetch.
    """
    if path is None:
        path = PLACE.download()
    if not path.exists():
        raise DataError(
            f"CIFAR-10: there is nothing at {path}; {PLACE.help()}; or pass a folder or zip with CLASS/NAME.png in it"
        )
    for folder in (path, path / PLACE.inner):
        if any((folder / name).exists() for name in _BATCHES):
            return _read_batches(PLACE.find(folder)), CLASSES
    try:
        return read_folder(path, classes=CLASSES, size=SIDE)
    except DataError as error:
        raise DataError(f"CIFAR-10: {error}; or {PLACE.help()}") from error


def _read_batches(folder: Path) -> Pictures:
    images, labels = zip(*(read_batch(folder / name, "labels", len(CLASSES)) for name in _BATCHES), strict=True)
    return ArrayPictures(torch.cat(images), torch.cat(labels))


datasets.add("cifar10", DataSet(read_cifar10, channels=3, resolution=224, mean=0.5, std=0.5, network="mcunet"))
