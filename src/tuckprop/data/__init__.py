"""Data sets by name: read from where the user has them, checked, decoded, served in batches."""

from tuckprop.data import (
    ade20k,
    cifar10,
    cifar100,
    cityscapes,
    cub200,
    digits,
    flowers102,
    food101,
    imagenet,
    own,
    pets,
    shapes,
    voc2012,
)
from tuckprop.data._base import IGNORED, DataSet, Pictures, Served, datasets
from tuckprop.data.arrays import ArrayPictures
from tuckprop.data.batches import Batches
from tuckprop.data.folder import FilePictures, read_folder
from tuckprop.data.halves import halves
from tuckprop.data.load import Loaded, load
from tuckprop.data.on_demand import OnDemand
from tuckprop.data.scenes import ScenePictures
from tuckprop.data.split import split

__all__ = [
    "IGNORED",
    "ArrayPictures",
    "Batches",
    "DataSet",
    "FilePictures",
    "Loaded",
    "OnDemand",
    "Pictures",
    "ScenePictures",
    "Served",
    "ade20k",
    "cifar10",
    "cifar100",
    "cityscapes",
    "cub200",
    "datasets",
    "digits",
    "flowers102",
    "food101",
    "halves",
    "imagenet",
    "load",
    "own",
    "pets",
    "read_folder",
    "shapes",
    "split",
    "voc2012",
]
