"""Images with masks, for segmentation: a class for every pixel."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tuckprop.data._base import IGNORED
from tuckprop.data._lists import list_pictures, require_files
from tuckprop.errors import DataError

Mask = np.ndarray[Any, np.dtype[np.uint8]]
"""Numbers of classes, [height, width]."""


class ScenePictures:
    """Image files, each with a mask in a file of its own.

    Args:
        root: Where the images are.
        names: Of the images, seen from there.
        masks: One an image.
        read_mask: Returns a mask file's numbers: 0 to `classes` - 1, or 255, which is ignored.
        classes: How many there are.
        listed: What lists the images, for error texts.

    Raises:
        DataError: There are no images, or a file is missing.
    """

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        masks: Sequence[Path],
        read_mask: Callable[[Path], Mask],
        classes: int,
        listed: Path,
    ) -> None:
        self.labels = torch.zeros(len(names), dtype=torch.int64)
        self._images = list_pictures(root, names, self.labels, listed)
        require_files(masks, listed)
        self._root = root
        self._masks = masks
        self._read_mask = read_mask
        self._classes = classes

    def decode(self, indices: Tensor, resolution: int) -> Tensor:
        """Return the chosen images in RGB, [images, 3, resolution, resolution]."""
        return self._images.decode(indices, resolution)

    def targets(self, indices: Tensor, resolution: int) -> Tensor:
        """Return the chosen images' masks, uint8 [images, resolution, resolution], resized to the nearest pixel.

        Raises:
            DataError: A mask cannot be decoded, is of another size than its image, or has a class that there is not.
        """
        masks = torch.empty(len(indices), resolution, resolution, dtype=torch.uint8)
        for row, index in enumerate(indices.tolist()):
            mask = Image.fromarray(self._check(self._read_mask(self._masks[index]), index))
            square = mask.resize((resolution, resolution), Image.Resampling.NEAREST)
            masks[row] = torch.from_numpy(np.array(square))
        return masks

    def _check(self, mask: Mask, index: int) -> Mask:
        path = self._masks[index]
        width, height = self._images.size(index)
        if mask.shape != (height, width):
            shape = " x ".join(str(length) for length in mask.shape[::-1])
            name = self._images.names[index]
            raise DataError(
                f"{path}: expected {width} x {height} pixels, as the image {name!r} has, got {shape}; unpack both again"
            )
        wrong = mask[(mask >= self._classes) & (mask != IGNORED)]
        if wrong.size:
            raise DataError(
                f"{path}: expected classes from 0 to {self._classes - 1} or {IGNORED}, got {wrong[0]}; replace the mask"
            )
        return mask


def read_png_mask(path: Path) -> Mask:
    """Return the numbers in a mask file: a grey image, or one with a palette, whose colours do not matter.

    Raises:
        DataError: It cannot be decoded, or is an image in colours.
    """
    try:
        with Image.open(path) as image:
            image.load()
            mode, mask = image.mode, np.array(image)
    except Exception as error:  # a damaged image may raise anything
        reason = str(error) or type(error).__name__
        raise DataError(f"{path}: cannot decode the mask: {reason}; it may be truncated, replace it") from error
    if mode not in {"L", "P"}:
        raise DataError(f"{path}: expected a mask in grey or with a palette (mode L or P), got mode {mode}; replace it")
    return mask


def renumbered(mask: Mask, table: Mask, path: Path) -> Mask:
    """Return a mask in other numbers.

    Args:
        mask: Numbers as the data set has them, [height, width].
        table: The new number of each old one, [old numbers]; 255 for what is ignored.
        path: The mask's file.

    Raises:
        DataError: The mask has a number that the table lacks; 255 stays 255.
    """
    wrong = mask[(mask >= len(table)) & (mask != IGNORED)]
    if wrong.size:
        raise DataError(
            f"{path}: expected numbers from 0 to {len(table) - 1} or {IGNORED}, got {wrong[0]}; replace the mask"
        )
    whole = np.full(256, IGNORED, np.uint8)
    whole[: len(table)] = table
    return whole[mask]
