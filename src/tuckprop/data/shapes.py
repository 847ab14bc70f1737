"""Drawn shapes with masks: 1,200 images, no download, for tests and demos of segmentation.

One to three circles, squares and triangles, turned and of any size, lie on noise. Colours are drawn at random for each,
and for the ground too, so that form alone gives the class away. An image counts as one of its first class, circles
before squares before triangles, where images are chosen by class: half 0 has circles in 22 of its 600 images, half 1 in
all.
"""

from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from tuckprop.data._base import DataSet, Pictures, datasets
from tuckprop.errors import ConfigError

CLASSES = ("background", "circle", "square", "triangle")
_COUNT = 1200
_SEED = 2024

N = TypeVar("N", bound=np.generic)
_Array = np.ndarray[Any, np.dtype[N]]


class ShapePictures:
    """Images that are drawn when they are asked for; an image's number and the seed decide what is in it.

    Args:
        count: Number of images.
        seed: Of all of them.
    """

    def __init__(self, count: int = _COUNT, seed: int = _SEED) -> None:
        self._seed = seed
        self.labels = torch.tensor([int(self._kinds(self._forms(index)).min()) for index in range(count)])

    def decode(self, indices: Tensor, resolution: int) -> Tensor:
        """Return the chosen images in RGB, uint8 [images, 3, resolution, resolution]."""
        images = torch.empty(len(indices), 3, resolution, resolution, dtype=torch.uint8)
        for row, index in enumerate(indices.tolist()):
            kinds, mask = self._draw(index, resolution)
            # Another stream than the forms', which must not depend on the resolution.
            generator = np.random.default_rng((self._seed, index, 1))
            colours = 40 + 175 * generator.random((len(kinds), 3))
            noise = generator.normal(0, 20, (resolution, resolution, 3))
            pixels = (colours[mask] + noise).round().clip(0, 255).astype(np.uint8)
            images[row] = torch.from_numpy(pixels).permute(2, 0, 1)
        return images

    def targets(self, indices: Tensor, resolution: int) -> Tensor:
        """Return the chosen images' masks, uint8 [images, resolution, resolution]."""
        masks = torch.empty(len(indices), resolution, resolution, dtype=torch.uint8)
        for row, index in enumerate(indices.tolist()):
            kinds, mask = self._draw(index, resolution)
            masks[row] = torch.from_numpy(kinds[mask])
        return masks

    def _draw(self, index: int, resolution: int) -> "tuple[_Array[np.uint8], _Array[np.int64]]":
        """Return the class of each form, 0 for the ground, and the number of the form at each pixel."""
        generator = self._forms(index)
        centres = (np.arange(resolution) + 0.5) / resolution
        y, x = np.meshgrid(centres, centres, indexing="ij")
        kinds = np.concatenate([[0], self._kinds(generator)]).astype(np.uint8)
        mask = np.zeros((resolution, resolution), np.int64)
        for number, kind in enumerate(kinds[1:], 1):
            radius = generator.uniform(0.12, 0.28)
            left, top = generator.uniform(radius, 1 - radius, 2)
            angle = generator.uniform(0, 2 * np.pi)
            mask[_inside(int(kind), (x - left) / radius, (y - top) / radius, angle)] = number
        return kinds, mask

    def _forms(self, index: int) -> np.random.Generator:
        """Return what decides an image's forms."""
        return np.random.default_rng((self._seed, index))

    def _kinds(self, generator: np.random.Generator) -> "_Array[np.int64]":
        """Return the classes of an image's forms, which are drawn first."""
        return generator.integers(1, len(CLASSES), int(generator.integers(1, 4)))


def _inside(kind: int, x: "_Array[np.float64]", y: "_Array[np.float64]", angle: float) -> "_Array[np.bool_]":
    """Return which pixels are in a form in the unit circle; x and y [height, width] are seen from its centre."""
    if kind == CLASSES.index("circle"):
        distances, edge = np.hypot(x, y), 1.0
    else:
        # A regular polygon lies within a certain distance of its centre, seen from each of its sides.
        sides = 4 if kind == CLASSES.index("square") else 3
        directions = angle + 2 * np.pi * np.arange(sides) / sides
        seen = np.stack([x * np.cos(direction) + y * np.sin(direction) for direction in directions])
        distances, edge = seen.max(axis=0), np.cos(np.pi / sides)
    inside: _Array[np.bool_] = distances < edge
    return inside


def read_shapes(path: Path | None) -> tuple[Pictures, tuple[str, ...]]:
    """Return all 1,200 images, and the names of the classes.

    Raises:
        ConfigError: A path is given.
    """
    if path is not None:
        raise ConfigError(f"data set shapes is drawn, it needs no files: leave --data-path away, got {path}")
    return ShapePictures(), CLASSES


datasets.add(
    "shapes",
    DataSet(read_shapes, channels=3, resolution=64, mean=0.5, std=0.5, network="pspnet_r18", per_pixel=True),
)
