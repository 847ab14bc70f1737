"""scikit-learn's bundled digits (UCI, Alpaydin and Kaynak 1998): 1,797 images of 8 x 8, no download."""

from pathlib import Path

import torch

from tuckprop.data._base import DataSet, Pictures, datasets
from tuckprop.data.arrays import ArrayPictures
from tuckprop.errors import ConfigError


def read_digits(path: Path | None) -> tuple[Pictures, tuple[str, ...]]:
    """Return all 1,797 images, [images, 1, 8, 8], and the names of the classes.

    Raises:
        ConfigError: A path is given, or scikit-learn is not installed.
    """
    if path is not None:
        raise ConfigError(f"data set digits comes with scikit-learn: leave --data-path away, got {path}")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError(f"data set digits needs scikit-learn ({error}): pip install 'tuckprop[cli]'") from error
    digits = load_digits()
    # Pixels count from 0 to 16.
    images = torch.from_numpy(digits.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
    return ArrayPictures(images, torch.from_numpy(digits.target).long()), tuple("0123456789")


datasets.add("digits", DataSet(read_digits, channels=1, resolution=8, mean=0.5, std=0.5, network="digits_cnn"))
