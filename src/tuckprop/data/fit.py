"""How an image of any shape becomes a square."""

from collections.abc import Callable

from PIL import Image

Fit = Callable[[Image.Image, int, int], Image.Image]
"""Given an image, the pixels a side that are wanted and the image's number, returns the square."""


def squeeze(image: Image.Image, side: int, number: int) -> Image.Image:
    """Return the whole image, its aspect ratio lost, as the paper does it for all but ImageNet."""
    return image if image.size == (side, side) else image.resize((side, side), Image.Resampling.BILINEAR)


def centre_crop(image: Image.Image, side: int, number: int) -> Image.Image:
    """Return the middle of the image: its shorter edge becomes 256/224 of `side`, as usual for ImageNet."""
    shorter = round(side * 256 / 224)
    scale = shorter / min(image.size)
    width, height = (max(side, round(length * scale)) for length in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    return image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + side, top + side))
