"""CIFAR-100 (Krizhevsky, 2009): 50,000 images of 32 x 32 for training, of 100 classes."""

from pathlib import Path

from tuckprop.data._archive import Archive
from tuckprop.data._base import DataSet, Pictures, datasets
from tuckprop.data._cifar import read_batch
from tuckprop.data._pickles import read_pickle
from tuckprop.data._places import Place
from tuckprop.data.arrays import ArrayPictures
from tuckprop.errors import DataError

_CLASSES = 100
PLACE = Place(
    title="CIFAR-100",
    cache="cifar100",
    inner="cifar-100-python",
    marks=("train", "meta"),
    source="cifar-100-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html",
    archives=(
        Archive("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", md5="eb9058c3a382ffc7106e4002c42a8d85"),
    ),
)


def read_cifar100(path: Path | None) -> tuple[Pictures, tuple[str, ...]]:
    """Return the training images, and the names of the 100 fine classes.

    Args:
        path: The original files, or the folder that holds theirs. None downloads them, once, into the user's cache
            folder.

    Raises:
        DataError: Files are missing or damaged; the text says what to fetch.
    """
    folder = PLACE.find(path)
    images, labels = read_batch(folder / "train", "fine_labels", _CLASSES)
    names = read_pickle(folder / "meta").get("fine_label_names")
    if not isinstance(names, list) or len(names) != _CLASSES:
        found = len(names) if isinstance(names, list) else type(names).__name__
        raise DataError(f"{folder / 'meta'}: expected a list of {_CLASSES} 'fine_label_names', got {found}")
    classes = tuple(name.decode("latin1") if isinstance(name, bytes) else str(name) for name in names)
    return ArrayPictures(images, labels), classes


datasets.add("cifar100", DataSet(read_cifar100, channels=3, resolution=224, mean=0.5, std=0.5, network="mcunet"))
