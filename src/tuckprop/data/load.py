"""From a data set's name to batches for training and validation."""

from dataclasses import dataclass
from pathlib import Path

from tuckprop.data._base import datasets
from tuckprop.data.batches import Batches
from tuckprop.data.split import split
from tuckprop.errors import ConfigError


@dataclass(frozen=True)
class Loaded:
    """A data set, decoded and split.

    Attributes:
        train: Batches to train on.
        val: Batches to validate on; none of its images is in `train`, and none is dropped.
        classes: Names of the classes, by label.
        channels: Channels of the images.
        network: Name of the network that fits.
    """

    train: Batches
    val: Batches
    classes: tuple[str, ...]
    channels: int
    network: str


def load(
    name: str,
    path: Path | None = None,
    *,
    seed: int,
    batch_size: int,
    resolution: int | None = None,
    train_size: int | None = None,
    val_size: int | None = None,
    drop_last: bool = True,
) -> Loaded:
    """Read a data set's training images, split them 80/20, decode those that are used, and hold them in memory.

    Args:
        name: A registered name.
        path: Where the files are; None stands for the usual place.
        seed: Decides the split and the subset.
        batch_size: Images a batch.
        resolution: Pixels a side that the network sees; None stands for the data set's own.
        train_size: Train on so many images, the same number of every class; None takes all.
        val_size: Validate on so many, likewise.
        drop_last: Leave the last training batch away where it is not full.

    Returns:
        The batches.

    Raises:
        ConfigError: The name is unknown, or a number is out of range.
        DataError: Files are missing, misplaced or damaged.
    """
    entry = datasets[name]
    side = entry.resolution if resolution is None else resolution
    if side < 1:
        raise ConfigError(f"resolution: expected at least 1 pixel, got {side}")
    pictures, classes = entry.read(None if path is None else Path(path).expanduser())
    chosen = split(pictures.labels, seed, train_size=train_size, val_size=val_size)
    train, val = (
        Batches(
            pictures.decode(indices, side),
            pictures.labels[indices],
            batch_size=batch_size,
            resolution=side,
            mean=entry.mean,
            std=entry.std,
            drop_last=drop,
        )
        for indices, drop in zip(chosen, (drop_last, False), strict=True)
    )
    return Loaded(train, val, classes, entry.channels, entry.network)
