"""From a data set's name to batches for training and validation."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from tuckprop.data._base import Augment, DataSet, Pictures, Served, datasets
from tuckprop.data.batches import Batches
from tuckprop.data.halves import halves
from tuckprop.data.on_demand import OnDemand
from tuckprop.data.split import split, subset
from tuckprop.errors import ConfigError, DataError

T = TypeVar("T")

# Decoded images that take more than this stay on disk and are decoded batch by batch.
_MOST_BYTES = 2 * 1024**3


@dataclass(frozen=True)
class Loaded:
    """A data set, split.

    Attributes:
        train: Batches to train on.
        val: Batches to validate on; none of its images is in `train`, and none is dropped.
        classes: Names of the classes, by label.
        channels: Channels of the images.
        network: Name of the network that fits.
        per_pixel: Targets are masks, int64 [batch, height, width], where 255 is ignored; else labels, int64 [batch].
    """

    train: Served
    val: Served
    classes: tuple[str, ...]
    channels: int
    network: str
    per_pixel: bool = False


@dataclass(frozen=True)
class _Part:
    """Images that are used, int64 [images] of what there are."""

    pictures: Pictures
    indices: Tensor

    def decoded_bytes(self, side: int) -> int:
        """Return the bytes that they and their targets take in memory, judged by the first."""
        first = self.indices[:1]
        size = self.pictures.decode(first, side).nbytes + self.pictures.targets(first, side).nbytes
        return len(self.indices) * size

    def serve(self, large: bool, augment: Augment | None, settings: dict[str, Any]) -> Served:
        """Return their batches; what is augmented is another image in every epoch, so it is decoded anew."""
        if large or augment is not None:
            return OnDemand(self.pictures, self.indices, augment=augment, **settings)
        side = settings["resolution"]
        images, targets = self.pictures.decode(self.indices, side), self.pictures.targets(self.indices, side)
        return Batches(images, targets, **settings)


def subject(name: str) -> str:
    """Return how a text begins that is about a data set's files as a whole, and so the same for all of its runs."""
    return f"data set {name}"


def _read(name: str, read: Callable[[Path | None], T], path: Path | None) -> T:
    """Return what `read` finds; an error says first which data set it is about."""
    try:
        return read(None if path is None else Path(path).expanduser())
    except DataError as error:
        raise DataError(f"{subject(name)}: {error}") from error


def _members(name: str, entry: DataSet, labels: Tensor, half: int | None) -> Tensor:
    """Return which of the training images are used: all, or those of one half."""
    if half is None:
        return torch.arange(len(labels))
    if entry.per_pixel and len(labels.unique()) < 2:
        raise ConfigError(
            f"half: {name}'s targets are masks, but halves are made by the classes of images; leave it away"
        )
    return halves(labels)[half]


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
    half: int | None = None,
) -> Loaded:
    """Read a data set, split it, and decode the images that are used: at once, or batch by batch over 2 GiB.

    Without `half` the validation images are the data set's own where the paper takes those (Flowers102, ImageNet and
    segmentation); else 20% of the training images.

    Args:
        name: A registered name.
        path: Where the files are; None stands for the usual place.
        seed: Decides the split and the subset.
        batch_size: Images a batch.
        resolution: Pixels a side that the network sees; None stands for the data set's own.
        train_size: Train on so many images, the same number of every class; None takes all.
        val_size: Validate on so many, likewise.
        drop_last: Leave the last training batch away where it is not full.
        half: 0 or 1 takes that half of the training images, as `halves` cuts them, 80% to train and 20% to validate
            (the paper's set-up B: pretrain on 0, fine-tune on 1); None takes all.

    Returns:
        The batches.

    Raises:
        ConfigError: The name is unknown, a number is out of range, or images that have masks alone are to be halved.
        DataError: Files are missing, misplaced or damaged.
    """
    entry = datasets[name]
    side = entry.resolution if resolution is None else resolution
    if side < 1:
        raise ConfigError(f"resolution: expected at least 1 pixel, got {side}")
    if half not in {None, 0, 1}:
        raise ConfigError(f"half: expected 0 or 1, or none for all images, got {half!r}")
    pictures, classes = _read(name, entry.read, path)
    if entry.read_val is None or half is not None:
        members = _members(name, entry, pictures.labels, half)
        chosen = split(pictures.labels[members], seed, train_size=train_size, val_size=val_size)
        train, val = (_Part(pictures, members[part]) for part in chosen)
    else:
        own = _read(name, entry.read_val, path)
        train = _Part(pictures, subset(pictures.labels, seed, train_size, "train_size"))
        val = _Part(own, subset(own.labels, seed, val_size, "val_size"))
    large = train.decoded_bytes(side) + val.decoded_bytes(side) > _MOST_BYTES
    settings: dict[str, Any] = {"batch_size": batch_size, "resolution": side, "mean": entry.mean, "std": entry.std}
    served = (
        train.serve(large, entry.augment, settings | {"drop_last": drop_last}),
        val.serve(large, None, settings | {"drop_last": False}),
    )
    return Loaded(*served, classes, entry.channels, entry.network, entry.per_pixel)
