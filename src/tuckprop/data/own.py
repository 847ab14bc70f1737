"""Any images of one's own, one folder a class."""

from pathlib import Path

from tuckprop.data._base import DataSet, Pictures, datasets
from tuckprop.data._imagenet_statistics import MEAN, STD
from tuckprop.data.folder import read_folder
from tuckprop.errors import ConfigError


def read_own(path: Path | None) -> tuple[Pictures, tuple[str, ...]]:
    """Return the images of a folder or zip as `read_folder` takes them, and the names of the classes.

    Raises:
        ConfigError: No path is given.
    """
    if path is None:
        raise ConfigError("data set folder: pass --data-path a folder or zip with CLASS/NAME.jpg in it")
    return read_folder(path)


datasets.add(
    "folder",
    DataSet(
        read_own,
        channels=3,
        resolution=224,
        mean=MEAN,
        std=STD,
        network="mobilenetv2",
    ),
)
