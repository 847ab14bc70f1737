"""Tiny data sets for segmentation in the real on-disk formats. Every mask has two halves, left and right."""

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from tests.data.trees import paint, write_lines

SIZE = (20, 14)


def halves_mask(left: int, right: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Return a mask, uint8 [height, width]."""
    mask = np.full(size[::-1], right, np.uint8)
    mask[:, : size[0] // 2] = left
    return mask


def write_mask(path: Path, mask: np.ndarray, palette: bool = False) -> Path:
    """Write a PNG, grey or with VOC's kind of palette; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask)
    if palette:
        image = image.convert("P")
        image.putdata(mask.flatten().tolist())
        image.putpalette([(7 * number) % 256 for number in range(768)])
    image.save(path)
    return path


def write_voc2012(root: Path) -> Path:
    """Write VOCdevkit/VOC2012: images 1 to 3 to train on, 4 and 5 to validate on; return `root`."""
    folder = root / "VOCdevkit" / "VOC2012"
    for number in range(1, 6):
        paint(folder / "JPEGImages" / f"2007_00000{number}.jpg", number, SIZE)
        mask = halves_mask(number, 255)
        write_mask(folder / "SegmentationClass" / f"2007_00000{number}.png", mask, palette=True)
    lists = folder / "ImageSets" / "Segmentation"
    write_lines(lists / "train.txt", *(f"2007_00000{number}" for number in (1, 2, 3)))
    write_lines(lists / "val.txt", "2007_000004", "2007_000005")
    return root


def write_sbd(root: Path) -> Path:
    """Write benchmark_RELEASE/dataset: images 3 and 4, which VOC has too, and 7 and 8; return `root`."""
    folder = root / "benchmark_RELEASE" / "dataset"
    (folder / "cls").mkdir(parents=True)
    for number in (3, 4, 7, 8):
        name = f"2007_00000{number}"
        paint(folder / "img" / f"{name}.jpg", number, SIZE)
        truth = {"Boundaries": np.zeros((20, 1), object), "Segmentation": halves_mask(number + 10, 0)}
        savemat(folder / "cls" / f"{name}.mat", {"GTcls": truth | {"CategoriesPresent": number + 10}})
    write_lines(folder / "train.txt", "2007_000003", "2007_000008")
    write_lines(folder / "val.txt", "2007_000004", "2007_000007")
    return root


def write_cityscapes(root: Path) -> Path:
    """Write leftImg8bit and gtFine: two cities to train on, one to validate on; return `root`."""
    scenes = {"train/aachen": (1, 7, 33), "train/bochum": (2, 26, 0), "val/munster": (3, 24, 9)}
    for place, (number, left, right) in scenes.items():
        name = f"{place}/{place.partition('/')[2]}_000000_00000{number}"
        paint(root / "leftImg8bit" / f"{name}_leftImg8bit.png", number, SIZE)
        write_mask(root / "gtFine" / f"{name}_gtFine_labelIds.png", halves_mask(left, right))
        write_mask(root / "gtFine" / f"{name}_gtFine_instanceIds.png", halves_mask(99, 99))
    return root


def write_ade20k(root: Path) -> Path:
    """Write ADEChallengeData2016: two images to train on, one to validate on; return `root`."""
    folder = root / "ADEChallengeData2016"
    for part, stem, number, left, right in (
        ("training", "ADE_train_00000001", 1, 1, 150),
        ("training", "ADE_train_00000002", 2, 0, 3),
        ("validation", "ADE_val_00000001", 3, 5, 6),
    ):
        paint(folder / "images" / part / f"{stem}.jpg", number, SIZE)
        write_mask(folder / "annotations" / part / f"{stem}.png", halves_mask(left, right))
    return root
