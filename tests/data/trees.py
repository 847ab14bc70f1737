"""Tiny data sets in the real on-disk formats."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def pictures(count: int = 30, seed: int = 0) -> tuple[np.ndarray, list[int]]:
    """Return random images [count, 32, 32, 3] and labels in which every class occurs."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), [number % 10 for number in range(count)]


def write_folder(root: Path, count: int = 30) -> Path:
    """Write CLASS/NNNN.png; return `root`."""
    for number, (image, label) in enumerate(zip(*pictures(count), strict=True)):
        folder = root / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number:04}.png")
    return root


def write_zip(folder: Path, archive: Path, prefix: str = "") -> Path:
    """Put a folder's images into a zip; return the zip."""
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*.png")):
            file.write(path, prefix + path.relative_to(folder).as_posix())
    return archive


def write_batches(root: Path, count: int = 10) -> Path:
    """Write the five Python batches as the original has them: pickles of protocol 2 with bytes as keys."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for number in range(1, 6):
        images, labels = pictures(count, seed=number)
        planes = images.transpose(0, 3, 1, 2).reshape(count, -1)
        batch = {
            b"batch_label": b"training batch",
            b"labels": labels,
            b"data": planes,
            b"filenames": [b"x.png"] * count,
        }
        (folder / f"data_batch_{number}").write_bytes(pickle.dumps(batch, protocol=2))
    return root


def colour(number: int) -> tuple[int, int, int]:
    """Return the colour of image `number` in the trees below."""
    return (number * 20 % 256, number * 50 % 256, 255 - number * 10 % 256)


def paint(path: Path, number: int, size: tuple[int, int] = (20, 14)) -> Path:
    """Write an image all in its colour; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour(number)).save(path, "png" if path.suffix == ".png" else "jpeg", quality=95)
    return path


def write_lines(path: Path, *lines: str) -> None:
    """Write a text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def write_cifar100(root: Path, count: int = 200) -> Path:
    """Write cifar-100-python as the original has it; return `root`."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    images, _ = pictures(count)
    train = {
        b"filenames": [b"x.png"] * count,
        b"fine_labels": [number % 100 for number in range(count)],
        b"coarse_labels": [number % 20 for number in range(count)],
        b"data": images.transpose(0, 3, 1, 2).reshape(count, -1),
    }
    (folder / "train").write_bytes(pickle.dumps(train, protocol=2))
    names = {b"fine_label_names": [f"fine{n}".encode() for n in range(100)], b"coarse_label_names": [b"c"] * 20}
    (folder / "meta").write_bytes(pickle.dumps(names, protocol=2))
    return root


def write_cub200(root: Path) -> Path:
    """Write CUB_200_2011 with images 1 to 8, of classes 1, 2 and 200; the odd ones are to train on; return `root`."""
    folder = root / "CUB_200_2011"
    classes = {1: "001.Albatross", 2: "002.Auklet", 200: "200.Yellowthroat"}
    labels = {number: [1, 2, 200][number // 2 % 3] for number in range(1, 9)}
    names = {number: f"{classes[labels[number]]}/bird_{number:04}.jpg" for number in labels}
    for number, name in names.items():
        paint(folder / "images" / name, number)
    write_lines(folder / "images.txt", *(f"{number} {name}" for number, name in names.items()))
    write_lines(folder / "image_class_labels.txt", *(f"{number} {label}" for number, label in labels.items()))
    write_lines(folder / "train_test_split.txt", *(f"{number} {number % 2}" for number in names))
    return root


def write_flowers102(root: Path) -> Path:
    """Write flowers-102 with images 1 to 9, three each to train, validate and test; return `root`."""
    folder = root / "flowers-102"
    for number in range(1, 10):
        paint(folder / "jpg" / f"image_{number:05}.jpg", number)
    savemat(folder / "imagelabels.mat", {"labels": np.array([77, 77, 1, 1, 102, 102, 5, 5, 5], np.uint8)})
    parts = {"trnid": [5, 1, 3], "valid": [2, 4, 6], "tstid": [7, 8, 9]}
    savemat(folder / "setid.mat", {name: np.array(part, np.uint16) for name, part in parts.items()})
    return root


def write_pets(root: Path) -> Path:
    """Write oxford-iiit-pet with five images; return `root`."""
    folder = root / "oxford-iiit-pet"
    names = {
        "Abyssinian_100": 1,
        "great_pyrenees_7": 16,
        "Abyssinian_2": 1,
        "yorkshire_terrier_1": 37,
        "Abyssinian_3": 1,
    }
    for number, name in enumerate(names, 1):
        paint(folder / "images" / f"{name}.jpg", number)
    write_lines(folder / "annotations" / "trainval.txt", *(f"{name} {breed} 1 1" for name, breed in names.items()))
    write_lines(folder / "annotations" / "test.txt", "Abyssinian_201 1 1 1")
    return root


def write_food101(root: Path) -> Path:
    """Write food-101 with four images to train on; return `root`."""
    folder = root / "food-101"
    classes = ["apple_pie", *(f"dish_{number:03}" for number in range(99)), "waffles"]
    names = ["apple_pie/1005649", "waffles/12", "apple_pie/3", "dish_000/4"]
    for number, name in enumerate(names, 1):
        paint(folder / "images" / f"{name}.jpg", number)
    write_lines(folder / "meta" / "classes.txt", *classes)
    write_lines(folder / "meta" / "train.txt", *names)
    write_lines(folder / "meta" / "test.txt", "waffles/99")
    return root


WNIDS = ("n01440764", "n01443537", "n02119789")


def scatter(root: Path, count: int) -> Path:
    """Write `count` images of noise into root/train, of two of ImageNet's classes in turn; return `root`."""
    for number, image in enumerate(pictures(count)[0]):
        folder = root / "train" / WNIDS[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.JPEG")
    return root


def write_imagenet(root: Path, flat: bool = False) -> Path:
    """Write train, with six images of three classes, and val, with four: in folders, or flat beside the kit."""
    for number in range(1, 7):
        wnid = WNIDS[number % 3]
        paint(root / "train" / wnid / f"{wnid}_{number}.JPEG", number, size=(40, 30))
    labels = [2, 0, 1, 2]
    for number, label in enumerate(labels, 1):
        folder = root / "val" if flat else root / "val" / WNIDS[label]
        paint(folder / f"ILSVRC2012_val_{number:08}.JPEG", number, size=(40, 30))
    if flat:
        # The kit's numbers run in another order than the sorted names.
        kit = {WNIDS[2]: 1, WNIDS[0]: 2, WNIDS[1]: 3}
        data = root / "ILSVRC2012_devkit_t12" / "data"
        write_lines(data / "ILSVRC2012_validation_ground_truth.txt", *(str(kit[WNIDS[label]]) for label in labels))
        kind = [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children")]
        rows = [(number, wnid, "a fish", "swims", 0, []) for wnid, number in kit.items()]
        synsets = np.array([*rows, (4, "n00001740", "entity", "is", 3, [1, 2, 3])], dtype=kind)
        savemat(data / "meta.mat", {"synsets": synsets.reshape(-1, 1)})
    return root
