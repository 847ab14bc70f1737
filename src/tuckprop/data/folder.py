"""Images as files, one folder a class, on disk or in a zip."""

import os
import zipfile
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tuckprop.data.fit import Fit, squeeze
from tuckprop.errors import DataError

T = TypeVar("T")

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm")


class FilePictures:
    """Labelled image files.

    Args:
        names: What `read` takes, one an image.
        labels: int64, [images].
        read: Returns a file's bytes.
        where: The folder or zip, for error texts.
        size: Pixels a side that every image must have; None takes any size and makes all of them `resolution` square.
        fit: How an image becomes a square.
    """

    def __init__(
        self,
        names: Sequence[str],
        labels: Tensor,
        read: Callable[[str], bytes],
        where: Path,
        size: int | None,
        fit: Fit = squeeze,
    ) -> None:
        self.names = names
        self.labels = labels
        self.where = where
        self._read = read
        self._size = size
        self._fit = fit

    def fitted(self, fit: Fit) -> "FilePictures":
        """Return the same images, made into squares by `fit`."""
        return FilePictures(self.names, self.labels, self._read, self.where, self._size, fit)

    def decode(self, indices: Tensor, resolution: int) -> Tensor:
        """Return the chosen images in RGB, [images, 3, height, width]; raises DataError with the name of a bad file."""
        side = resolution if self._size is None else min(self._size, resolution)
        images = torch.empty(len(indices), 3, side, side, dtype=torch.uint8)
        for row, index in enumerate(indices.tolist()):
            square = self._fit(self._open(self.names[index]), side, index)
            images[row] = torch.from_numpy(np.array(square)).permute(2, 0, 1)
        return images

    def targets(self, indices: Tensor, resolution: int) -> Tensor:
        """Return the chosen images' labels."""
        return self.labels[indices]

    def size(self, index: int) -> tuple[int, int]:
        """Return an image's width and height in its file."""
        return self._decoded(self.names[index], lambda image: image.size)

    def _open(self, name: str) -> Image.Image:
        rgb = self._decoded(name, lambda image: image.convert("RGB"))
        if self._size is not None and rgb.size != (self._size, self._size):
            raise DataError(
                f"{self.where}: image {name!r}: expected {self._size} x {self._size} pixels, got "
                f"{rgb.width} x {rgb.height}; replace it"
            )
        return rgb

    def _decoded(self, name: str, use: Callable[[Image.Image], T]) -> T:
        """Return what `use` makes of an image's file."""
        try:
            with Image.open(BytesIO(self._read(name))) as image:
                return use(image)
        except FileNotFoundError as error:
            raise DataError(f"{self.where}: the image {name!r} is missing; unpack the data set again") from error
        except Exception as error:  # a damaged image or zip may raise anything
            reason = str(error) or type(error).__name__
            raise DataError(
                f"{self.where}: cannot decode the image {name!r}: {reason}; it may be truncated, replace it"
            ) from error


def read_folder(
    path: Path, *, classes: Sequence[str] | None = None, size: int | None = None
) -> tuple[FilePictures, tuple[str, ...]]:
    """List the images of a folder or zip, without decoding any.

    Args:
        path: A folder or zip with `CLASS/NAME.jpg` in it (in the zip, perhaps under one more folder); or a folder that
            holds such a `train` folder or `train.zip`.
        classes: The classes that must be there, in the order of their labels; None takes the folders' names, sorted.
        size: Pixels a side that every image must have, if that is known.

    Returns:
        The images, and the names of the classes by label.

    Raises:
        DataError: The path is missing, is no zip, or is not laid out like that.
    """
    for inner in (path / "train", path / "train.zip"):
        if inner.exists():
            return read_folder(inner, classes=classes, size=size)
    if path.is_dir():
        # By names alone: ImageNet has more than a million.
        folders = [name for name in os.listdir(path) if (path / name).is_dir()]
        names = sorted(
            f"{folder}/{name}" for folder in folders for name in os.listdir(path / folder) if _is_image(name)
        )
        return _label(names, lambda name: (path / name).read_bytes(), path, classes, size)
    if not path.is_file():
        raise DataError(f"{path}: expected a folder or a zip with CLASS/NAME.jpg in it, there is nothing")
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # a damaged zip may raise anything
        reason = str(error) or type(error).__name__
        raise DataError(f"{path}: expected a zip with CLASS/NAME.jpg in it, cannot read it as one: {reason}") from error
    names = sorted(name for name in archive.namelist() if _is_image(name) and PurePosixPath(name).parent.name)
    return _label(names, archive.read, path, classes, size)


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not PurePosixPath(name).name.startswith("._")


def _some(names: Sequence[str]) -> str:
    """Return names for a text, ten at most."""
    rest = [f"{len(names) - 10} more"] if len(names) > 10 else []
    return ", ".join([*names[:10], *rest]) or "none"


def _label(
    names: Sequence[str], read: Callable[[str], bytes], where: Path, classes: Sequence[str] | None, size: int | None
) -> tuple[FilePictures, tuple[str, ...]]:
    folders = [PurePosixPath(name).parent.name for name in names]
    found = sorted(set(folders))
    if len(found) < 2:
        raise DataError(
            f"{where}: expected images as CLASS/NAME.jpg, in a folder for each of at least two classes; found "
            f"{len(names)} images in {len(found)} folders; give the folder that holds the classes' folders"
        )
    known = tuple(classes) if classes is not None else tuple(found)
    if set(found) != set(known):
        strange, absent = sorted(set(found) - set(known)), sorted(set(known) - set(found))
        raise DataError(
            f"{where}: expected a folder for each of the {len(known)} classes {_some(known)}; "
            f"unknown: {_some(strange)}; missing: {_some(absent)}"
        )
    label = {name: number for number, name in enumerate(known)}
    return FilePictures(names, torch.tensor([label[folder] for folder in folders]), read, where, size), known
