"""Oxford-IIIT Pet (Parkhi et al., 2012): 3,680 images of 37 breeds of cats and dogs for training."""

from pathlib import Path

import torch

from tuckprop.data._archive import Archive
from tuckprop.data._base import DataSet, Pictures, datasets
from tuckprop.data._imagenet_statistics import MEAN, STD
from tuckprop.data._lists import list_pictures, read_number, read_rows
from tuckprop.data._places import Place

_CLASSES = 37
_LIST = "annotations/trainval.txt"
PLACE = Place(
    title="Oxford-IIIT Pet",
    cache="pets",
    inner="oxford-iiit-pet",
    marks=("images", _LIST),
    source="images.tar.gz and annotations.tar.gz from https://www.robots.ox.ac.uk/~vgg/data/pets",
    archives=(
        Archive(
            "https://www.robots.ox.ac.uk/~vgg/data/pets/data/images.tar.gz",
            md5="5c4f3ee8e5d25df40f4fd59a7f44e54c",
            folder="oxford-iiit-pet",
        ),
        Archive(
            "https://www.robots.ox.ac.uk/~vgg/data/pets/data/annotations.tar.gz",
            md5="95a8c909bbe2e81eed6a22bccdf3f68f",
            folder="oxford-iiit-pet",
        ),
    ),
)


def read_pets(path: Path | None) -> tuple[Pictures, tuple[str, ...]]:
    """Return the images of `trainval`, and the names of the 37 breeds.

    Args:
        path: The folder with images and annotations, or the one that holds it as oxford-iiit-pet. None downloads them,
            once, into the user's cache folder.

    Raises:
        DataError: Files are missing or damaged; the text says what to fetch.
    """
    folder = PLACE.find(path)
    names, labels = [], []
    # Name, breed from 1, species, breed within the species.
    for name, breed, _, _ in read_rows(folder / _LIST, 4):
        names.append(name)
        labels.append(read_number(breed, folder / _LIST, f"breed of {name}", 1, _CLASSES) - 1)
    breeds = {label: name.rpartition("_")[0] for name, label in zip(names, labels, strict=True)}
    files = [f"{name}.jpg" for name in names]
    pictures = list_pictures(folder / "images", files, torch.tensor(labels, dtype=torch.int64), folder / _LIST)
    return pictures, tuple(breeds.get(label, str(label + 1)) for label in range(_CLASSES))


datasets.add("pets", DataSet(read_pets, channels=3, resolution=224, mean=MEAN, std=STD, network="mcunet"))
