"""Every data set for segmentation, in the format that its makers publish."""

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

from tests.data.scene_trees import (
    SIZE,
    halves_mask,
    write_ade20k,
    write_cityscapes,
    write_mask,
    write_sbd,
    write_voc2012,
)
from tests.data.trees import colour, paint, write_lines
from tuckprop.data import IGNORED, Batches, OnDemand, Pictures, datasets, load
from tuckprop.errors import ConfigError, DataError, TuckpropWarning

# VOC without SBD is what most tests need.
pytestmark = pytest.mark.filterwarnings("ignore:VOC 2012.*:tuckprop.errors.TuckpropWarning")

Halves = list[tuple[int, int]]


@dataclass(frozen=True)
class Case:
    """A data set and its tiny tree.

    Attributes:
        write: Writes the tree into a folder.
        inner: Where its files are in there.
        numbers: The training images, by the number of their colour.
        masks: Left and right half of each of their masks.
        val_numbers: The validation images.
        val_masks: Theirs.
        classes: How many there are.
        images: Where the first training image is.
        mask: Where its mask is.
        wrong: A number that a mask file cannot have.
        said: What the error then says.
    """

    write: Callable[[Path], Path]
    inner: str
    numbers: list[int]
    masks: Halves
    val_numbers: list[int]
    val_masks: Halves
    classes: int
    image: str
    mask: str
    wrong: int
    said: str


CASES = {
    "voc2012": Case(
        write_voc2012, "VOCdevkit/VOC2012", [1, 2, 3], [(1, 255), (2, 255), (3, 255)], [4, 5], [(4, 255), (5, 255)], 21,
        "JPEGImages/2007_000001.jpg", "SegmentationClass/2007_000001.png", 21, "from 0 to 20 or 255, got 21",
    ),
    "cityscapes": Case(
        write_cityscapes, "", [1, 2], [(0, 18), (13, 255)], [3], [(11, 255)], 19,
        "leftImg8bit/train/aachen/aachen_000000_000001_leftImg8bit.png",
        "gtFine/train/aachen/aachen_000000_000001_gtFine_labelIds.png", 34, "from 0 to 33 or 255, got 34",
    ),
    "ade20k": Case(
        write_ade20k, "ADEChallengeData2016", [1, 2], [(0, 149), (255, 2)], [3], [(4, 5)], 150,
        "images/training/ADE_train_00000001.jpg", "annotations/training/ADE_train_00000001.png", 151,
        "from 0 to 150 or 255, got 151",
    ),
}  # fmt: skip


def check(found: Pictures, numbers: list[int], masks: Halves) -> None:
    """Compare images and masks with what was written, at a resolution that is no divisor of their size."""
    indices = torch.arange(len(numbers))
    assert found.labels.tolist() == [0] * len(numbers)
    for image, number in zip(found.decode(indices, 12).float(), numbers, strict=True):
        assert image.shape == (3, 12, 12)
        assert (image - torch.tensor(colour(number))[:, None, None]).abs().max() <= 4
    targets = found.targets(indices, 12)
    assert targets.dtype == torch.uint8
    for target, (left, right) in zip(targets, masks, strict=True):
        assert torch.equal(target, torch.tensor([left] * 6 + [right] * 6, dtype=torch.uint8).expand(12, 12))


def test_every_data_set_for_segmentation_has_a_case() -> None:
    assert set(CASES) == {name for name in datasets if datasets[name].per_pixel} - {"shapes"}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("inside", [False, True])
def test_images_come_with_their_masks(tmp_path: Path, name: str, inside: bool) -> None:
    case, entry = CASES[name], datasets[name]
    root = case.write(tmp_path)
    root = root / case.inner if inside else root
    found, classes = entry.read(root)
    assert len(classes) == len(set(classes)) == case.classes
    check(found, case.numbers, case.masks)
    check(entry.read_val(root), case.val_numbers, case.val_masks)


@pytest.mark.parametrize("name", CASES)
def test_batches_have_masks_of_whole_numbers(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    monkeypatch.chdir(case.write(tmp_path))
    # A relative path, too.
    loaded = load(name, Path(), seed=1, batch_size=2, resolution=10)
    assert loaded.per_pixel
    ((images, masks),) = loaded.val.serve()
    assert images.shape == (len(case.val_numbers), 3, 10, 10)
    assert (masks.dtype, masks.shape) == (torch.int64, (len(case.val_numbers), 10, 10))
    seen = {(row[0], row[-1]): row for row in masks[:, 0].tolist()}
    assert seen == {(left, right): [left] * 5 + [right] * 5 for left, right in case.val_masks}


def test_masks_are_resized_to_the_nearest_pixel_and_never_mixed(tmp_path: Path) -> None:
    root = write_voc2012(tmp_path)
    board = (np.indices((14, 20)).sum(0) % 2 * 20).astype(np.uint8)
    write_mask(root / "VOCdevkit/VOC2012/SegmentationClass/2007_000001.png", board, palette=True)
    found, _ = datasets["voc2012"].read(root)
    for resolution in (5, 40):
        assert set(found.targets(torch.tensor([0]), resolution).unique().tolist()) == {0, 20}


@pytest.mark.parametrize("place", [".", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_sbd_adds_its_images_but_none_of_vocs(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_voc2012(tmp_path)
    write_sbd(root / place)
    expected = ([1, 2, 3, 7, 8], [(1, 255), (2, 255), (3, 255), (17, 0), (18, 0)])
    for path in (root, root / "VOCdevkit", root / "VOCdevkit" / "VOC2012"):
        check(datasets["voc2012"].read(path)[0], *expected)
    monkeypatch.chdir(root / "VOCdevkit" / "VOC2012")
    check(datasets["voc2012"].read(Path())[0], *expected)
    check(datasets["voc2012"].read_val(root), [4, 5], [(4, 255), (5, 255)])


def test_damaged_masks_of_sbd_are_named(tmp_path: Path) -> None:
    root = write_sbd(write_voc2012(tmp_path))
    path = root / "benchmark_RELEASE" / "dataset" / "cls" / "2007_000007.mat"
    found, _ = datasets["voc2012"].read(root)
    for content, text in (
        ({"other": 1}, "GTcls is missing"),
        ({"GTcls": {"Boundaries": 1}}, r"expected the mask GTcls\.Segmentation"),
        ({"GTcls": {"Segmentation": np.zeros((14, 20))}}, "as uint8.*got float64"),
        ({"GTcls": {"Segmentation": halves_mask(30, 0)}}, "from 0 to 20 or 255, got 30"),
        ({"GTcls": {"Segmentation": halves_mask(3, 0, (20, 15))}}, "20 x 14.*got 20 x 15"),
    ):
        savemat(path, content)
        with pytest.raises(DataError, match=rf"2007_000007\.mat.*{text}"):
            found.targets(torch.tensor([3]), 8)


@pytest.mark.parametrize("name", CASES)
def test_missing_data_says_what_to_fetch(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "empty").mkdir()
    for read in (datasets[name].read, datasets[name].read_val):
        with pytest.raises(DataError, match=r"lacks .*fetch .*(zip|tar) from http.*--data-path"):
            read(tmp_path / "empty")
    if name == "cityscapes":
        with pytest.raises(DataError, match=r"by hand; fetch .*zip from http.*--data-path"):
            datasets[name].read(None)


@pytest.mark.parametrize("name", CASES)
def test_a_mask_or_image_that_is_missing_is_named_at_once(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    root = case.write(tmp_path) / case.inner
    (root / case.mask).unlink()
    with pytest.raises(DataError, match=rf"{Path(case.mask).name} is missing.*unpack"):
        datasets[name].read(root)
    for path in root.rglob(f"*{Path(case.image).suffix}"):
        if path.parts[-2] != "SegmentationClass":
            path.unlink()
    with pytest.raises(DataError, match=r"is missing|there are none"):
        datasets[name].read(root)


@pytest.mark.parametrize("name", CASES)
def test_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    root = case.write(tmp_path) / case.inner
    found, first = datasets[name].read(root)[0], torch.tensor([0])
    image, mask = root / case.image, root / case.mask
    whole = mask.read_bytes()
    mask.write_bytes(whole[:-30])
    with pytest.raises(DataError, match=rf"{mask.name}: cannot decode the mask.*truncated"):
        found.targets(first, 8)
    write_mask(mask, halves_mask(1, 1, (SIZE[0], SIZE[1] + 1)))
    with pytest.raises(DataError, match=rf"{mask.name}: expected 20 x 14 pixels.*{image.name}.*got 20 x 15"):
        found.targets(first, 8)
    write_mask(mask, halves_mask(case.wrong, 1))
    with pytest.raises(DataError, match=rf"{mask.name}: expected .*{case.said}"):
        found.targets(first, 8)
    paint(mask, 1, SIZE)
    with pytest.raises(DataError, match=rf"{mask.name}: expected a mask in grey or with a palette.*RGB"):
        found.targets(first, 8)
    image.write_bytes(image.read_bytes()[: len(image.read_bytes()) // 2])
    with pytest.raises(DataError, match=rf"{image.name}.*truncated"):
        found.decode(first, 8)


def test_a_list_of_another_layout_is_named(tmp_path: Path) -> None:
    root = write_voc2012(tmp_path)
    listed = root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation" / "train.txt"
    write_lines(listed, "2007_000001 1")
    with pytest.raises(DataError, match=r"train\.txt, line 1: expected 1 words"):
        datasets["voc2012"].read(root)


def test_masks_cannot_be_halved(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="half: voc2012's targets are masks"):
        load("voc2012", write_voc2012(tmp_path), seed=1, batch_size=8, half=0)


def test_halves_of_shapes_share_few_images_with_circles_and_none_else() -> None:
    circle, found = 1, []
    for half, seed in ((0, 233), (1, 234)):
        loaded = load("shapes", seed=seed, batch_size=8, resolution=16, half=half, drop_last=False)
        parts = [torch.cat([images for images, _ in part.serve()]) for part in (loaded.train, loaded.val)]
        masks = torch.cat([targets for part in (loaded.train, loaded.val) for _, targets in part.serve()])
        assert sum(map(len, parts)) == 600
        assert 119 <= len(parts[1]) <= 121
        assert int((masks == circle).flatten(1).any(1).sum()) in (range(20, 37), range(590, 601))[half]
        assert set(masks.unique().tolist()) == {0, 1, 2, 3}
        found += [image.numpy().tobytes() for part in parts for image in part]
    # Two seeds, and no image twice in either or in both.
    assert len(set(found)) == 1200


def test_shapes_are_drawn_alike_at_every_resolution() -> None:
    pictures, classes = datasets["shapes"].read(None)
    some = torch.tensor([3, 700, 11])
    small, large = (pictures.targets(some, side) for side in (32, 96))
    # A coarse pixel's centre is that of the middle of three fine ones.
    assert torch.equal(small, large[:, 1::3, 1::3])
    assert torch.equal(pictures.decode(some, 32), pictures.decode(some, 32))
    assert classes == ("background", "circle", "square", "triangle")
    with pytest.raises(ConfigError, match="leave --data-path away"):
        datasets["shapes"].read(Path("x"))


def test_colours_of_shapes_do_not_give_the_class_away() -> None:
    pictures, classes = datasets["shapes"].read(None)
    everything = torch.arange(300)
    pixels = pictures.decode(everything, 16).float().movedim(1, -1).flatten(0, -2)
    labels = pictures.targets(everything, 16).flatten()
    for label in range(len(classes)):
        of_class = pixels[labels == label]
        assert len(of_class) > 500
        assert (of_class.mean(0) - pixels.mean(0)).abs().max() < 15
        assert 40 < of_class.std(0).min() < of_class.std(0).max() < 70


def test_forms_have_their_areas() -> None:
    pictures, classes = datasets["shapes"].read(None)
    masks = pictures.targets(torch.arange(600), 48)
    # Alone in an image, and of mean squared radius: regular polygons in a circle.
    squared = (0.28**3 - 0.12**3) / (3 * 0.16)
    expected = {"circle": np.pi, "square": 2, "triangle": 3 * np.sqrt(3) / 4}
    for label, name in enumerate(classes):
        if name != "background":
            areas = [(mask == label).float().mean().item() for mask in masks if mask.unique().tolist() == [0, label]]
            assert len(areas) > 40
            # Some images have two or three of the kind.
            assert 0.9 < np.median(areas) / (expected[name] * squared) < 1.5
    assert IGNORED not in masks


def test_shapes_are_split_and_may_be_served_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {"seed": 1, "batch_size": 16, "resolution": 24, "train_size": 40, "val_size": 20}
    memory = load("shapes", **wanted)
    monkeypatch.setattr(sys.modules["tuckprop.data.load"], "_MOST_BYTES", 60 * 4 * 24 * 24 - 1)
    demand = load("shapes", **wanted)
    assert (type(memory.train), type(demand.train), type(demand.val)) == (Batches, OnDemand, OnDemand)
    for a, b in ((memory.train, demand.train), (memory.val, demand.val)):
        for (x, y), (u, v) in zip(a.serve(a.shuffled(5, 1)), b.serve(b.shuffled(5, 1)), strict=True):
            assert (x.shape[1:], y.shape[1:], y.dtype) == ((3, 24, 24), (24, 24), torch.int64)
            assert torch.equal(x, u)
            assert torch.equal(y, v)


@pytest.mark.filterwarnings("default::tuckprop.errors.TuckpropWarning")
def test_voc_without_sbd_is_no_voc12aug_and_says_so(tmp_path: Path) -> None:
    root = write_voc2012(tmp_path)
    with pytest.warns(TuckpropWarning, match=r"3 images to train on.*10,582.*benchmark_RELEASE"):
        datasets["voc2012"].read(root)
    write_sbd(root)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        datasets["voc2012"].read(root)
