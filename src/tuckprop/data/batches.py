"""Batches cut from one tensor of decoded images: no workers, no augmentation (the paper uses none)."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from tuckprop.errors import ConfigError


class Batches:
    """Labelled images in memory, served as normalised batches.

    Args:
        images: uint8, [images, channels, height, width].
        labels: int64, [images].
        batch_size: Images a batch.
        resolution: Pixels a side of what is served; smaller images are enlarged (bilinear), batch by batch.
        mean: Subtracted from pixels in [0, 1]; one for all channels or one a channel.
        std: Then divided by.
        drop_last: Leave the last batch away where it is not full.

    Raises:
        ConfigError: There is not one batch.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        resolution: int,
        mean: float | tuple[float, ...] = 0.5,
        std: float | tuple[float, ...] = 0.5,
        drop_last: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size: expected at least 1, got {batch_size}")
        self.images = images
        self.labels = labels
        self.batch_size = batch_size
        self.resolution = resolution
        self._mean = torch.as_tensor(mean).view(-1, 1, 1)
        self._std = torch.as_tensor(std).view(-1, 1, 1)
        self._count = len(labels) // batch_size if drop_last else -(-len(labels) // batch_size)
        if not self._count:
            raise ConfigError(
                f"batch_size: {len(labels)} images make no full batch of {batch_size}; use more images, smaller "
                "batches, or keep the last batch (--no-drop-last)"
            )

    def __len__(self) -> int:
        return self._count

    def shuffled(self, seed: int, epoch: int) -> Tensor:
        """Return the order of an epoch, int64, [images]; it depends on nothing but the arguments."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        return torch.randperm(len(self.labels), generator=generator)

    def serve(self, order: Tensor | None = None, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches: images, float32 [batch, channels, resolution, resolution], and labels, int64 [batch].

        Args:
            order: As `shuffled` returns it; None serves the images as they are stored.
            start: Number of batches to leave away at the beginning.
        """
        order = torch.arange(len(self.labels)) if order is None else order
        for number in range(start, self._count):
            chosen = order[number * self.batch_size : (number + 1) * self.batch_size]
            yield self._prepare(self.images[chosen]), self.labels[chosen]

    def _prepare(self, images: Tensor) -> Tensor:
        x = images.float() / 255
        if x.shape[-2:] != (self.resolution, self.resolution):
            x = F.interpolate(x, (self.resolution, self.resolution), mode="bilinear", align_corners=False)
        return (x - self._mean) / self._std
