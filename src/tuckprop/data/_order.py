"""In which order images are served, and where one batch ends and the next begins."""

from collections.abc import Iterator

import torch
from torch import Tensor

from tuckprop.errors import ConfigError


class Order:
    """So many images in batches.

    Args:
        count: Number of images.
        batch_size: Images a batch.
        drop_last: Leave the last batch away where it is not full.

    Raises:
        ConfigError: There is not one batch.
    """

    def __init__(self, count: int, batch_size: int, drop_last: bool) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size: expected at least 1, got {batch_size}")
        self.count = count
        self.batch_size = batch_size
        self.batches = count // batch_size if drop_last else -(-count // batch_size)
        if not self.batches:
            raise ConfigError(
                f"batch_size: {count} images make no full batch of {batch_size}; use more images, smaller "
                "batches, or keep the last batch (--no-drop-last)"
            )

    def shuffled(self, seed: int, epoch: int) -> Tensor:
        """Return the order of an epoch, int64, [images]; it depends on nothing but the arguments."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        return torch.randperm(self.count, generator=generator)

    def cut(self, order: Tensor | None, start: int) -> Iterator[Tensor]:
        """Yield each batch's part of `order` (None: as stored), int64 [batch], leaving `start` batches away."""
        order = torch.arange(self.count) if order is None else order
        for number in range(start, self.batches):
            yield order[number * self.batch_size : (number + 1) * self.batch_size]
