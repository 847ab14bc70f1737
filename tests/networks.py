"""Small networks that have what real ones have: norms, a residual, a depthwise layer, attention, several heads."""

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """Two convolutions around a depthwise one, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(2 * channels)
        self.depthwise = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels, bias=False)
        self.project = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Shape [b, c, h, w] to the same."""
        hidden = torch.relu(self.norm(self.expand(x)))
        return x + self.project(torch.relu(self.depthwise(hidden)))


class ConvNet(nn.Module):
    """Five convolutions and a classifier."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.act = nn.ReLU()
        self.block = Residual(8)
        self.tail = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.head = nn.Linear(12, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Shape [b, 3, h, w] to [b, classes]."""
        x = self.tail(self.block(self.act(self.bn(self.stem(x)))))
        return self.head(x.mean((2, 3)))


CONVOLUTIONS = ["stem", "block.expand", "block.depthwise", "block.project", "tail.0"]


class Transformer(nn.Module):
    """A patch embedding, a class token and two blocks of attention: one convolution, eleven Linear layers."""

    def __init__(self, width: int = 8, blocks: int = 3) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.blocks = nn.ModuleList(TransformerBlock(width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Shape [b, 3, h, w] to [b, 5]."""
        x = self.patches(x).flatten(2).mT
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))


class TransformerBlock(nn.Module):
    """Attention with one head, and two Linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Shape [b, t, width] to the same."""
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v))
        return x + self.scale * self.down(torch.relu(self.up(x)))
