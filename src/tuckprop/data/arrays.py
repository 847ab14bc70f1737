"""Images that are in memory already."""

import torch.nn.functional as F
from torch import Tensor, uint8


class ArrayPictures:
    """Labelled images in one tensor.

    Args:
        images: uint8, [images, channels, height, width].
        labels: int64, [images].
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def decode(self, indices: Tensor, resolution: int) -> Tensor:
        """Return the chosen images, shrunk where they are larger than `resolution`."""
        chosen = self.images[indices]
        if max(chosen.shape[-2:]) <= resolution:
            return chosen
        size = (resolution, resolution)
        shrunk = F.interpolate(chosen.float(), size, mode="bilinear", antialias=True, align_corners=False)
        return shrunk.round().clamp(0, 255).to(uint8)

    def targets(self, indices: Tensor, resolution: int) -> Tensor:
        """Return the chosen images' labels."""
        return self.labels[indices]
