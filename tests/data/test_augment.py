"""Crops: at random, and from the middle."""

import numpy as np
import pytest
import torch
from PIL import Image

from tuckprop.data import ArrayPictures
from tuckprop.data.augment import RandomCrop, crop_and_flip
from tuckprop.data.fit import centre_crop, squeeze
from tuckprop.errors import ConfigError


def ramp(width: int, height: int) -> Image.Image:
    """Return an image that tells where a pixel was: red across, green down."""
    across = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    down = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    return Image.fromarray(np.stack([across, down, np.zeros_like(down)], -1).round().astype(np.uint8))


def test_crops_are_of_the_area_and_shape_that_torchvision_draws() -> None:
    areas, ratios, flips = [], [], 0
    for number in range(400):
        square = np.asarray(RandomCrop(5)(ramp(300, 200), 32, number)).astype(float)
        # Between pixels 4 and 28, away from the edges, lie 24/32 of the crop.
        width = abs(square[16, 28, 0] - square[16, 4, 0]) / 255 * 300 * 32 / 24
        height = (square[28, 16, 1] - square[4, 16, 1]) / 255 * 200 * 32 / 24
        flips += square[16, -1, 0] < square[16, 0, 0]
        areas.append(width * height / (300 * 200))
        ratios.append(width / height)
    assert 0.06 < min(areas) < 0.12
    assert 0.8 < max(areas) < 1.08
    # Uniform in [0.08, 1], but for the large crops of extreme shape, which do not fit.
    assert 0.4 < np.mean(areas) < 0.56
    assert 0.68 < min(ratios) < 0.8
    assert 1.25 < max(ratios) < 1.45
    assert 160 < flips < 240


def test_a_very_long_image_gives_its_middle() -> None:
    square = np.asarray(RandomCrop(5)(ramp(4000, 10), 16, 0))
    assert abs(square[..., 0].mean() - 127.5) < 2
    assert square[..., 0].std() < 1
    assert square[-1, 0, 1] - square[0, 0, 1] > 200


def test_seed_and_number_decide_alone() -> None:
    image = ramp(60, 40)
    first = RandomCrop(1)(image, 16, 2).tobytes()
    torch.manual_seed(9)
    np.random.seed(9)  # noqa: NPY002
    assert RandomCrop(1)(image, 16, 2).tobytes() == first
    assert RandomCrop(1)(image, 16, 3).tobytes() != first
    assert RandomCrop(2)(image, 16, 2).tobytes() != first


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (224, 224), (30, 40)])
def test_the_middle_is_that_of_torchvisions_resize_and_centre_crop(size: tuple[int, int]) -> None:
    square = np.asarray(centre_crop(ramp(*size), 224, 0)).astype(float)
    assert square.shape == (224, 224, 3)
    shorter = min(size)
    for axis, length in ((0, size[0]), (1, size[1])):
        seen = 255 * 224 / 256 * shorter / length
        line = square[112, :, axis] if axis == 0 else square[:, 112, axis]
        assert abs(line.mean() - 127.5) < 2
        assert abs(line[-1] - line[0] - seen * 223 / 224) < 10


def test_squeezing_keeps_all_of_the_image() -> None:
    square = np.asarray(squeeze(ramp(300, 200), 64, 0))
    assert square.shape == (64, 64, 3)
    assert (square[32, 0, 0] < 4, square[32, -1, 0] > 251, square[0, 32, 1] < 4, square[-1, 32, 1] > 251) == (True,) * 4


def test_images_that_are_no_files_are_refused() -> None:
    pictures = ArrayPictures(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.zeros(1))
    with pytest.raises(ConfigError, match=r"FilePictures.*ArrayPictures"):
        crop_and_flip(pictures, 1)
