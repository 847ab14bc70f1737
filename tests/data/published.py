"""Tiny data sets, published on a server as the real ones are."""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

import pytest
import torch

from tests.data.scene_trees import write_ade20k, write_sbd, write_voc2012
from tests.data.trees import (
    write_batches,
    write_cifar100,
    write_cub200,
    write_flowers102,
    write_food101,
    write_pets,
)
from tests.servers import Server
from tuckprop.data import ade20k, cifar10, cifar100, cub200, datasets, flowers102, food101, pets, voc2012
from tuckprop.errors import DataError


@dataclass(frozen=True)
class Shelf:
    """How a data set is published.

    Attributes:
        room: Its module.
        write: Writes its tiny tree.
        holds: What of the tree is in each of its files.
    """

    room: ModuleType
    write: Callable[[Path], Path]
    holds: dict[str, str]


SHELVES = {
    "cifar10": Shelf(cifar10, write_batches, {"cifar-10-python.tar.gz": "cifar-10-batches-py"}),
    "cifar100": Shelf(cifar100, write_cifar100, {"cifar-100-python.tar.gz": "cifar-100-python"}),
    "cub200": Shelf(cub200, write_cub200, {"CUB_200_2011.tgz": "CUB_200_2011"}),
    "flowers102": Shelf(
        flowers102,
        write_flowers102,
        {
            "102flowers.tgz": "flowers-102/jpg",
            "imagelabels.mat": "flowers-102/imagelabels.mat",
            "setid.mat": "flowers-102/setid.mat",
        },
    ),
    "pets": Shelf(
        pets,
        write_pets,
        {"images.tar.gz": "oxford-iiit-pet/images", "annotations.tar.gz": "oxford-iiit-pet/annotations"},
    ),
    "food101": Shelf(food101, write_food101, {"food-101.tar.gz": "food-101"}),
    "voc2012": Shelf(
        voc2012,
        lambda root: write_sbd(write_voc2012(root)),
        {"VOCtrainval_11-May-2012.tar": "VOCdevkit", "benchmark.tgz": "benchmark_RELEASE"},
    ),
    "ade20k": Shelf(ade20k, write_ade20k, {"ADEChallengeData2016.zip": "ADEChallengeData2016"}),
}
FORMATS = {".tar": "tar", ".gz": "gztar", ".tgz": "gztar", ".zip": "zip"}


def pack(content: Path, name: str, folder: Path) -> bytes:
    """Return a folder as an archive of the kind that `name` has, or a file as it is."""
    if content.is_file():
        return content.read_bytes()
    made = shutil.make_archive(str(folder / name), FORMATS[Path(name).suffix], content.parent, content.name)
    return Path(made).read_bytes()


def serve(server: Server, monkeypatch: pytest.MonkeyPatch, room: ModuleType, files: dict[str, bytes]) -> None:
    """Let the data set's files come from the server, at the paths that they really have."""
    archives = []
    for archive in room.PLACE.archives:
        path, content = urlsplit(archive.address).path, files[archive.name]
        server.files[path] = content
        archives.append(replace(archive, address=server.url + path, md5=hashlib.md5(content).hexdigest()))
    monkeypatch.setattr(room, "PLACE", replace(room.PLACE, archives=tuple(archives)))


class Remote:
    """A data set that is published on the server.

    Attributes:
        tree: Its tiny tree.
        root: Where its download goes.
        paths: Of its files on the server.
    """

    def __init__(self, name: str, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        shelf = SHELVES[name]
        self.name = name
        self.tree = shelf.write(tmp_path / "tree")
        self.root = tmp_path / "cache" / "tuckprop" / name
        files = {file: pack(self.tree / inner, file, tmp_path / "packed") for file, inner in shelf.holds.items()}
        serve(server, monkeypatch, shelf.room, files)
        self.paths = list(server.files)

    def check(self) -> None:
        """Compare what is read where no path is given, with what was published."""
        entry = datasets[self.name]
        (found, classes), (expected, names) = entry.read(None), entry.read(self.tree)
        assert len(found.labels) > 1
        assert found.labels.tolist() == expected.labels.tolist()
        assert classes == names
        pairs = [(found, expected)]
        if entry.read_val is not None:
            pairs.append((entry.read_val(None), entry.read_val(self.tree)))
        for mine, theirs in pairs:
            indices = torch.arange(len(theirs.labels))
            assert torch.equal(mine.decode(indices, 16), theirs.decode(indices, 16))
            assert torch.equal(mine.targets(indices, 16), theirs.targets(indices, 16))

    def beside(self) -> list[str]:
        """Return what is beside the folder, but for the lock."""
        return sorted(path.name for path in self.root.parent.iterdir() if path.suffix != ".lock")

    def fails(self, text: str) -> None:
        """Read it, and check that this fails with one clear text."""
        with pytest.raises(DataError) as caught:
            datasets[self.name].read(None)
        said = str(caught.value)
        place = SHELVES[self.name].room.PLACE
        assert f"{place.title}: the download into {self.root} failed (" in said
        assert text in said
        assert f"; fetch {place.source}" in said
        assert said.endswith(f"pass --data-path the folder with {place.inner} in it, or put that into {self.root}")
        assert "\n" not in said
