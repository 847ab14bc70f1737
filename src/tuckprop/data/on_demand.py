"""Batches of images that do not fit in memory: decoded by a few threads shortly before they are needed."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from zlib import crc32

import torch
from torch import Tensor

from tuckprop.data._base import Augment, Pictures
from tuckprop.data._normalise import Normalise
from tuckprop.data._order import Order
from tuckprop.errors import ConfigError

# Batches that are decoded while one is being used.
_AHEAD = 2
# Images that a thread decodes at a time: enough to outweigh the hand-over, few enough to share a batch.
_PORTION = 8


class OnDemand:
    """Images with targets, decoded while they are served; the same values whatever the number of workers.

    Args:
        pictures: The images.
        indices: Which of them to serve, int64, [images].
        batch_size: Images a batch.
        resolution: Pixels a side of what is served.
        mean: Subtracted from pixels in [0, 1]; one for all channels or one a channel.
        std: Then divided by.
        drop_last: Leave the last batch away where it is not full.
        augment: Applied to the images; the seed that it gets depends on the order that is served, thus on the epoch.
        workers: Threads that decode; None takes one a core, up to eight.

    Raises:
        ConfigError: There is not one batch, or no worker.
    """

    def __init__(
        self,
        pictures: Pictures,
        indices: Tensor,
        *,
        batch_size: int,
        resolution: int,
        mean: float | tuple[float, ...] = 0.5,
        std: float | tuple[float, ...] = 0.5,
        drop_last: bool = False,
        augment: Augment | None = None,
        workers: int | None = None,
    ) -> None:
        self.pictures = pictures
        self.indices = indices
        self.batch_size = batch_size
        self.resolution = resolution
        self._augment = augment
        self._order = Order(len(indices), batch_size, drop_last)
        self._normalise = Normalise(resolution, mean, std)
        self._workers = min(8, os.cpu_count() or 1) if workers is None else workers
        if self._workers < 1:
            raise ConfigError(f"workers: expected at least 1, got {workers}")

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

        Raises:
            DataError: An image cannot be decoded; it is raised when its batch is due.
        """
        pictures = self.pictures
        if self._augment is not None:
            whole = torch.arange(self._order.count) if order is None else order
            pictures = self._augment(pictures, crc32(whole.numpy().tobytes()))

        def portion(indices: Tensor) -> tuple[Tensor, Tensor]:
            return pictures.decode(indices, self.resolution), pictures.targets(indices, self.resolution)

        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="tuckprop-decode")
        waiting: deque[list[Future[tuple[Tensor, Tensor]]]] = deque()
        try:
            for chosen in self._order.cut(order, start):
                waiting.append([pool.submit(portion, part) for part in self.indices[chosen].split(_PORTION)])
                if len(waiting) > _AHEAD:
                    yield self._join(waiting.popleft())
            while waiting:
                yield self._join(waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _join(self, portions: list[Future[tuple[Tensor, Tensor]]]) -> tuple[Tensor, Tensor]:
        images, targets = zip(*(portion.result() for portion in portions), strict=True)
        return self._normalise(torch.cat(images)), torch.cat(targets).long()
