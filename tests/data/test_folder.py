"""Images as files, on disk and in a zip."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.trees import CLASSES, pictures, write_folder, write_zip
from tuckprop.data import read_folder
from tuckprop.errors import DataError


def test_a_folder_gives_every_image_with_the_class_of_its_folder(tmp_path: Path) -> None:
    found, classes = read_folder(write_folder(tmp_path / "x"))
    images, labels = pictures()
    # Files come sorted by class, then by name.
    order = sorted(range(len(labels)), key=lambda number: (CLASSES[labels[number]], number))
    assert classes == CLASSES
    assert found.labels.tolist() == [labels[number] for number in order]
    decoded = found.decode(torch.arange(len(labels)), resolution=32)
    np.testing.assert_array_equal(decoded.permute(0, 2, 3, 1).numpy(), images[order])


@pytest.mark.parametrize("prefix", ["", "train/", "./some/where/"])
def test_a_zip_gives_the_same_as_the_folder(tmp_path: Path, prefix: str) -> None:
    folder = write_folder(tmp_path / "x")
    plain, _ = read_folder(folder)
    zipped, classes = read_folder(write_zip(folder, tmp_path / "x.zip", prefix))
    everything = torch.arange(30)
    assert classes == CLASSES
    assert torch.equal(zipped.labels, plain.labels)
    assert torch.equal(zipped.decode(everything, 32), plain.decode(everything, 32))


@pytest.mark.parametrize("layout", ["train", "train.zip"])
def test_the_training_part_is_found_beside_the_test_part(tmp_path: Path, layout: str) -> None:
    folder = write_folder(tmp_path / "train")
    write_folder(tmp_path / "test", count=20)
    if layout == "train.zip":
        write_zip(folder, tmp_path / "train.zip")
        folder.rename(tmp_path / "elsewhere")
    assert len(read_folder(tmp_path)[0].labels) == 30


def test_images_of_any_size_and_mode_become_rgb_squares(tmp_path: Path) -> None:
    for name, (mode, size) in {"a/1.png": ("L", (40, 20)), "b/2.png": ("RGBA", (7, 9))}.items():
        (tmp_path / name).parent.mkdir()
        Image.new(mode, size, 77 if mode == "L" else (77, 77, 77, 255)).save(tmp_path / name)
    found, _ = read_folder(tmp_path)
    decoded = found.decode(torch.tensor([1, 0]), resolution=16)
    assert decoded.shape == (2, 3, 16, 16)
    assert (decoded == 77).all()


def test_a_truncated_image_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "x")
    victim = folder / "cat" / "0013.png"
    victim.write_bytes(victim.read_bytes()[:1500])
    found, _ = read_folder(folder)
    with pytest.raises(DataError, match=r"cat/0013\.png.*truncated"):
        found.decode(torch.arange(30), 32)


def test_a_text_file_called_png_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "x")
    (folder / "ship" / "0008.png").write_text("no image")
    found, _ = read_folder(folder)
    with pytest.raises(DataError, match=r"ship/0008\.png"):
        found.decode(torch.arange(30), 32)


def test_a_damaged_member_of_a_zip_is_named(tmp_path: Path) -> None:
    archive = write_zip(write_folder(tmp_path / "x"), tmp_path / "x.zip")
    with zipfile.ZipFile(archive) as file:
        offset = file.getinfo("dog/0005.png").header_offset
    content = bytearray(archive.read_bytes())
    content[offset + 200] ^= 0xFF
    archive.write_bytes(content)
    found, _ = read_folder(archive)
    with pytest.raises(DataError, match=r"dog/0005\.png"):
        found.decode(torch.arange(30), 32)


def test_wrong_layouts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is nothing"):
        read_folder(tmp_path / "absent")
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "flat" / "1.png")
    with pytest.raises(DataError, match="CLASS/NAME"):
        read_folder(tmp_path / "flat")
    (tmp_path / "no.zip").write_text("no zip")
    with pytest.raises(DataError, match="cannot read it as one"):
        read_folder(tmp_path / "no.zip")


def test_classes_that_must_be_there_are_compared(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "x")
    (folder / "bird").rename(folder / "whale")
    with pytest.raises(DataError, match=r"unknown: whale; missing: bird"):
        read_folder(folder, classes=CLASSES)


def test_an_image_of_another_size_is_named_where_sizes_are_known(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "x")
    buffer = io.BytesIO()
    Image.new("RGB", (31, 32)).save(buffer, "png")
    (folder / "frog" / "0006.png").write_bytes(buffer.getvalue())
    found, _ = read_folder(folder, size=32)
    with pytest.raises(DataError, match=r"frog/0006\.png.*32 x 32.*31 x 32"):
        found.decode(torch.arange(30), 32)
