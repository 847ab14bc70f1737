"""From stored pixels to what a network sees."""

import torch
import torch.nn.functional as F
from torch import Tensor


class Normalise:
    """Enlarge images and bring their pixels to a mean of about 0 and a deviation of about 1.

    Args:
        resolution: Pixels a side of the result; smaller images are enlarged (bilinear).
        mean: Subtracted from pixels in [0, 1]; one for all channels or one a channel.
        std: Then divided by.
    """

    def __init__(self, resolution: int, mean: float | tuple[float, ...], std: float | tuple[float, ...]) -> None:
        self.resolution = resolution
        self._mean = torch.as_tensor(mean).view(-1, 1, 1)
        self._std = torch.as_tensor(std).view(-1, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """Return uint8 images [batch, channels, height, width] as float32 [batch, channels, resolution, resolution]."""
        x = images.float() / 255
        if x.shape[-2:] != (self.resolution, self.resolution):
            x = F.interpolate(x, (self.resolution, self.resolution), mode="bilinear", align_corners=False)
        return (x - self._mean) / self._std
