"""What a data set is: decoded on demand, registered by name with the facts that training needs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from tuckprop.registry import Registry


class Pictures(Protocol):
    """Labelled images, not yet decoded.

    Attributes:
        labels: Class of each image, int64, [images].
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
    """

    read: Callable[[Path | None], tuple[Pictures, tuple[str, ...]]]
    channels: int
    resolution: int
    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]
    network: str


datasets: Registry[DataSet] = Registry("data set")
