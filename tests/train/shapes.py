"""Images of coloured shapes and their masks, made up, served as `tuckprop.data.Batches` serves images."""

from collections.abc import Iterator

import torch
from torch import Tensor


class Shapes:
    """A red square and a blue disc on noise; the masks say 1, 2 and 0, and 255 in a corner.

    Args:
        count: Images.
        batch_size: Images a batch; divides `count`.
        seed: Of the images.
        side: Of an image, in pixels.
    """

    def __init__(self, count: int, batch_size: int, seed: int, side: int = 32) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.images = 0.3 * torch.randn(count, 3, side, side, generator=generator)
        self.masks = torch.zeros(count, side, side, dtype=torch.int64)
        self.batch_size = batch_size
        row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        places = torch.randint(side // 4, side - side // 4, (count, 2, 2), generator=generator)
        for image, mask, (square, disc) in zip(self.images, self.masks, places, strict=True):
            inside = (row - square[0]).abs().maximum((column - square[1]).abs()) < side // 5
            image[0, inside], mask[inside] = 1.0, 1
            inside = (row - disc[0]) ** 2 + (column - disc[1]) ** 2 < (side // 5) ** 2
            image[2, inside], mask[inside] = 1.0, 2
        self.masks[:, :3, :3] = 255

    def __len__(self) -> int:
        return len(self.masks) // self.batch_size

    def shuffled(self, seed: int, epoch: int) -> Tensor:
        return torch.randperm(len(self.masks), generator=torch.Generator().manual_seed(1000 * seed + epoch))

    def serve(self, order: Tensor | None = None, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.arange(len(self.masks)) if order is None else order
        for chosen in order.split(self.batch_size)[start:]:
            yield self.images[chosen], self.masks[chosen]
