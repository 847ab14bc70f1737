"""CIFAR-10 (Krizhevsky, 2009): 50,000 images of 32 x 32 for training, from files, a zip or the original batches."""

import importlib
import os
from pathlib import Path

import numpy as np
import torch

from tuckprop.data._base import DataSet, Pictures, datasets
from tuckprop.data._pickles import read_pickle
from tuckprop.data.arrays import ArrayPictures
from tuckprop.data.folder import read_folder
from tuckprop.errors import ConfigError, DataError
from tuckprop.zoo._torchvision import import_torchvision

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32
_FOLDER = "cifar-10-batches-py"
_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
_HELP = (
    f"pass --data-path a folder with {_FOLDER} in it (unpack cifar-10-python.tar.gz from "
    "https://www.cs.toronto.edu/~kriz/cifar.html), or a folder or zip with CLASS/NAME.png in it"
)


def read_cifar10(path: Path | None) -> tuple[Pictures, tuple[str, ...]]:
    """Return the training images.

    Args:
        path: The original Python batches, or the folder that holds theirs, or images as `read_folder` takes them. None
            downloads the original with torchvision, once, into the user's cache folder.

    Returns:
        The images, and the names of the classes.

    Raises:
        DataError: Nothing is there, or it is not laid out as CIFAR-10 is; the text says what to fetch.
    """
    if path is None:
        path = _download()
    if not path.exists():
        raise DataError(f"CIFAR-10: there is nothing at {path}; {_HELP}")
    for folder in (path, path / _FOLDER):
        if any((folder / name).exists() for name in _BATCHES):
            return _read_batches(folder), CLASSES
    return read_folder(path, classes=CLASSES, size=SIDE)


def _read_batches(folder: Path) -> Pictures:
    absent = [name for name in _BATCHES if not (folder / name).is_file()]
    if absent:
        raise DataError(f"CIFAR-10: {folder} lacks {', '.join(absent)}; unpack the archive again")
    images, labels = zip(*(_read_batch(folder / name) for name in _BATCHES), strict=True)
    return ArrayPictures(torch.cat(images), torch.cat(labels))


def _read_batch(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    batch = read_pickle(path)
    data, labels = batch.get("data"), batch.get("labels")
    pixels = 3 * SIDE * SIDE
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != pixels:
        found = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise DataError(f"{path}: expected 'data' as uint8 [images, {pixels}], got {found}")
    if not isinstance(labels, list) or len(labels) != len(data):
        count = len(labels) if isinstance(labels, list) else type(labels).__name__
        raise DataError(f"{path}: expected a list of {len(data)} 'labels', one an image, got {count}")
    wrong = [label for label in labels if not isinstance(label, int) or not 0 <= label < len(CLASSES)]
    if wrong:
        raise DataError(f"{path}: expected labels from 0 to {len(CLASSES) - 1}, got {wrong[0]!r}")
    images = torch.from_numpy(np.array(data)).view(-1, 3, SIDE, SIDE)
    return images, torch.tensor(labels, dtype=torch.int64)


def _download() -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tuckprop" / "cifar10"
    if all((root / _FOLDER / name).is_file() for name in _BATCHES):
        return root
    try:
        import_torchvision()
        importlib.import_module("torchvision.datasets").CIFAR10(str(root), train=True, download=True)
    except (ImportError, OSError, RuntimeError, ConfigError) as error:
        raise DataError(f"CIFAR-10: the download into {root} failed ({error}); {_HELP}") from error
    return root


datasets.add("cifar10", DataSet(read_cifar10, channels=3, resolution=224, mean=0.5, std=0.5, network="mcunet"))
