"""Any images of one's own, one folder a class."""

from pathlib import Path

from tuckprop.data._base import DataSet, Pictures, datasets
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


# Mean and standard deviation of ImageNet, as pretrained networks expect.
datasets.add(
    "folder",
    DataSet(
        read_own,
        channels=3,
        resolution=224,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        network="mobilenetv2",
    ),
)
