"""Batches cut from one tensor of decoded images: no workers, no augmentation."""

from collections.abc import Iterator

from torch import Tensor

from tuckprop.data._normalise import Normalise
from tuckprop.data._order import Order


class Batches:
    """Images with targets, in memory, served as normalised batches.

    Args:
        images: uint8, [images, channels, height, width].
        labels: int64, [images]; or masks, uint8 [images, resolution, resolution].
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
        self.images = images
        self.labels = labels
        self.batch_size = batch_size
        self.resolution = resolution
        self._order = Order(len(labels), batch_size, drop_last)
        self._normalise = Normalise(resolution, mean, std)

    def __len__(self) -> int:
        return self._order.batches

    def shuffled(self, seed: int, epoch: int) -> Tensor:
        """Return the order of an epoch, int64, [images]; it depends on nothing but the arguments."""
        return self._order.shuffled(seed, epoch)

    def serve(self, order: Tensor | None = None, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches: images, float32 [batch, channels, resolution, resolution], and targets, int64 [batch, ...].

        Args:
            order: As `shuffled` returns it; None serves the images as they are stored.
            start: Number of batches to leave away at the beginning.
        """
        for chosen in self._order.cut(order, start):
            yield self._normalise(self.images[chosen]), self.labels[chosen].long()
