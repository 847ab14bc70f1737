"""Tiny data sets in the real on-disk formats."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

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
