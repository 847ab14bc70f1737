"""Random crops and flips, as ImageNet networks are trained with (the paper's set-up B); drawn anew in every epoch."""

from dataclasses import dataclass
from math import exp, log

import numpy as np
from PIL import Image

from tuckprop.data._base import Pictures
from tuckprop.data.folder import FilePictures
from tuckprop.errors import ConfigError

_AREA = (0.08, 1.0)
_RATIO = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class RandomCrop:
    """Crop a part of random area (8 to 100%) and aspect ratio (3/4 to 4/3), resize it, flip every other one.

    The rule is torchvision's RandomResizedCrop. Its own code draws from PyTorch's global random state, which threads
    share; here a seed and the image's number decide.

    Attributes:
        seed: Of the epoch.
    """

    seed: int

    def __call__(self, image: Image.Image, side: int, number: int) -> Image.Image:
        """Return the square of `side` pixels that image `number` becomes."""
        generator = np.random.default_rng((self.seed, number))
        cropped = image.crop(_box(image.width, image.height, generator))
        square = cropped.resize((side, side), Image.Resampling.BILINEAR)
        return square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if generator.random() < 0.5 else square


def _box(width: int, height: int, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom."""
    for _ in range(10):
        area = width * height * generator.uniform(*_AREA)
        ratio = exp(generator.uniform(log(_RATIO[0]), log(_RATIO[1])))
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            left, top = int(generator.integers(width - w + 1)), int(generator.integers(height - h + 1))
            return left, top, left + w, top + h
    # A very long image: its middle, as near to a square as the ratios allow.
    w, h = min(width, round(height * _RATIO[1])), min(height, round(width / _RATIO[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def crop_and_flip(pictures: Pictures, seed: int) -> Pictures:
    """Return the same images, each cropped and flipped at random.

    Args:
        pictures: Image files.
        seed: Of the epoch.

    Raises:
        ConfigError: The images are no files.
    """
    if not isinstance(pictures, FilePictures):
        raise ConfigError(f"augmentation: expected image files (FilePictures), got {type(pictures).__name__}")
    return pictures.fitted(RandomCrop(seed))
