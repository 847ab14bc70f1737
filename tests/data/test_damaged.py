"""Damaged images, masks and zips are named, whatever reading them raises."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.data.scene_trees import SIZE, halves_mask, write_mask
from tests.data.trees import write_folder, write_zip
from tuckprop.data import read_folder
from tuckprop.data.folder import FilePictures
from tuckprop.data.scenes import read_png_mask
from tuckprop.errors import DataError


def test_an_image_that_claims_a_huge_size_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = read_folder(write_folder(tmp_path / "x"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 32 * 32 // 3)
    with pytest.raises(DataError, match=r"cannot decode the image '.*\.png': .*decompression bomb"):
        found.decode(torch.arange(30), 32)


def test_a_zip_of_an_unknown_kind_is_named(tmp_path: Path) -> None:
    archive = write_zip(write_folder(tmp_path / "x"), tmp_path / "x.zip")
    content = archive.read_bytes()
    directory = content.index(b"PK\x01\x02")
    # The method of compression of the first member, then the version that the archive needs.
    archive.write_bytes(content[: directory + 10] + b"\x63\x00" + content[directory + 12 :])
    found, _ = read_folder(archive)
    with pytest.raises(DataError, match=r"cannot decode the image .*compression method"):
        found.decode(torch.arange(30), 32)
    archive.write_bytes(content[: directory + 6] + b"\xff" + content[directory + 7 :])
    with pytest.raises(DataError, match="cannot read it as one: zip file version"):
        read_folder(archive)


@pytest.mark.parametrize("error", [EOFError(), NotImplementedError("compression type 9"), RuntimeError("encrypted")])
def test_whatever_reading_an_image_raises_is_named(tmp_path: Path, error: Exception) -> None:
    def read(name: str) -> bytes:
        raise error

    found = FilePictures(["cat/1.png"], torch.zeros(1), read, tmp_path / "x.zip", None)
    said = str(error) or "EOFError"
    with pytest.raises(DataError, match=rf"x\.zip: cannot decode the image 'cat/1\.png': {said}"):
        found.decode(torch.tensor([0]), 32)


def test_a_mask_that_claims_a_huge_size_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_mask(tmp_path / "mask.png", halves_mask(1, 2))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", SIZE[0] * SIZE[1] // 3)
    with pytest.raises(DataError, match=r"mask\.png: cannot decode the mask: .*decompression bomb"):
        read_png_mask(path)
