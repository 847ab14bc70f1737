"""Choose images for training and validation: seeded, the same share of every class, the same on every machine."""

import torch
from torch import Tensor

from tuckprop.errors import ConfigError


def split(
    labels: Tensor, seed: int, *, train_size: int | None = None, val_size: int | None = None, val_share: float = 0.2
) -> tuple[Tensor, Tensor]:
    """Split images into a training and a validation set.

    The validation set is drawn from `val_share` of each class, the training set from the rest (80/20 in the paper).
    Smaller sizes take as many of each class, to within one; a smaller set of the same seed is part of a larger one.

    Args:
        labels: Class of each image, int64, [images].
        seed: Decides which.
        train_size: How many to train on; None takes all there are.
        val_size: How many to validate on; None takes all there are.
        val_share: Share of every class that is held out, in (0, 1).

    Returns:
        Indices for training and for validation, int64.

    Raises:
        ConfigError: A size is not positive or larger than what there is, or there is nothing to validate on.
    """
    # The largest class decides whether there is anything to hold out.
    if not any(round(int(count) * val_share) for count in labels.unique(return_counts=True)[1]):
        raise ConfigError(
            f"split: no class has images enough to hold {val_share:.0%} of them out for validation, of {len(labels)} "
            "images in all; use a data set with more images of each class"
        )
    train, val = [], []
    for members in _by_class(labels, seed):
        held_out = round(len(members) * val_share)
        val.append(members[:held_out])
        train.append(members[held_out:])
    return _take(train, train_size, "train_size"), _take(val, val_size, "val_size")


def subset(labels: Tensor, seed: int, size: int | None, name: str) -> Tensor:
    """Choose images of a set that is split already.

    Args:
        labels: Class of each image, int64, [images].
        seed: Decides which.
        size: How many, the same number of every class, to within one; None takes all.
        name: Of the setting, for the error's text.

    Returns:
        Indices, int64.

    Raises:
        ConfigError: The size is not positive or larger than what there is.
    """
    return _take(_by_class(labels, seed), size, name)


def _by_class(labels: Tensor, seed: int) -> list[Tensor]:
    """Return the indices of every class, shuffled."""
    generator = torch.Generator().manual_seed(seed)
    classes = []
    for label in labels.unique(sorted=True):
        members = (labels == label).nonzero().flatten()
        classes.append(members[torch.randperm(len(members), generator=generator)])
    return classes


def _take(classes: list[Tensor], size: int | None, name: str) -> Tensor:
    """Take the first of every class, then the second of every class, and so on."""
    rank = torch.cat([torch.arange(len(members)) for members in classes])
    ordered = torch.cat(classes)[rank.sort(stable=True).indices]
    if size is None:
        return ordered
    if not 1 <= size <= len(ordered):
        raise ConfigError(f"{name}: expected a number from 1 to {len(ordered)}, the images there are, got {size}")
    return ordered[:size]
