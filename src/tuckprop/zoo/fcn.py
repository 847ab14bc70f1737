"""The head of an FCN: convolutions on the backbone's last map, joined with that map.

Source: Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015, in the form
that MMSegmentation gives it and the paper uses: two convolutions and a third on their output and their input.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def _unit(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class FCNDecoder(nn.Module):
    """An FCN's head without its classifier.

    Args:
        inputs: Channels of the backbone's last map.
        channels: Channels of the result.
    """

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(_unit(inputs, channels), _unit(channels, channels))
        self.conv_cat = _unit(inputs + channels, channels)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map the last of the backbone's maps, [batch, inputs, h, w], to [batch, channels, h, w]."""
        x = features[-1]
        y: Tensor = self.conv_cat(torch.cat([x, self.convs(x)], dim=1))
        return y
