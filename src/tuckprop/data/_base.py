"""What a data set is: decoded on demand, registered by name with the facts that training needs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from tuckprop.registry import Registry

IGNORED = 255
"""Target of a pixel that counts neither in the loss nor in a score."""


class Pictures(Protocol):
    """Images with targets, not yet decoded.

    Attributes:
        labels: Class of each image, int64, [images], by which splits are balanced; zeros where targets are masks.
    """

    labels: Tensor

    def decode(self, indices: Tensor, resolution: int) -> Tensor:
        """Return the chosen images as uint8, [images, channels, height, width].

        Args:
            indices: Which, int64, [images].
            resolution: Images are stored at this many pixels a side at most; smaller ones are enlarged later, batch by
                batch, which takes less memory and gives the same values.

        Raises:
            DataError: An image cannot be decoded.
        """

    def targets(self, indices: Tensor, resolution: int) -> Tensor:
        """Return the chosen images' targets.

        Args:
            indices: Which, int64, [images].
            resolution: Pixels a side of a mask, which is never smaller.

        Returns:
            Labels, int64 [images]; or masks, uint8 [images, resolution, resolution], where 255 is ignored.

        Raises:
            DataError: A mask cannot be decoded or does not fit.
        """


class Served(Protocol):
    """Images and targets in batches, in an order that depends on nothing but a seed and an epoch."""

    def __len__(self) -> int:
        """Return the number of batches."""

    def shuffled(self, seed: int, epoch: int) -> Tensor:
        """Return the order of an epoch, int64, [images]; it depends on nothing but the arguments."""

    def serve(self, order: Tensor | None = None, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches: images, float32 [batch, channels, resolution, resolution], and targets.

        Targets are int64: labels [batch], or masks [batch, resolution, resolution] in which 255 is ignored.

        Args:
            order: As `shuffled` returns it; None serves the images as they are stored.
            start: Number of batches to leave away at the beginning.

        Raises:
            DataError: An image cannot be decoded.
        """


Augment = Callable[[Pictures, int], Pictures]
"""Given training images and the seed of an epoch, returns them as that epoch sees them."""


@dataclass(frozen=True)
class DataSet:
    """A data set by name.

    Attributes:
        read: Reads the training images from a path; None stands for the usual place.
        channels: Channels of the images.
        resolution: Pixels a side that the network sees, unless asked otherwise.
        mean: Subtracted from pixels in [0, 1].
        std: Then divided by.
        network: The network that fits, unless asked otherwise.
        read_val: Reads the data set's own validation images, from the same path; None has them drawn from `read`'s.
        per_pixel: Targets are masks.
        augment: Applied to the training images; None leaves them alone.
    """

    read: Callable[[Path | None], tuple[Pictures, tuple[str, ...]]]
    channels: int
    resolution: int
    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]
    network: str
    read_val: Callable[[Path | None], Pictures] | None = None
    per_pixel: bool = False
    augment: Augment | None = None


datasets: Registry[DataSet] = Registry("data set")
