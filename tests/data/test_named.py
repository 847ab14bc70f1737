"""Every data set for classification, in the format that its makers publish."""

import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from scipy.io import loadmat, savemat
from torch import Tensor

from tests.data.trees import (
    WNIDS,
    colour,
    pictures,
    scatter,
    write_cifar100,
    write_cub200,
    write_flowers102,
    write_food101,
    write_imagenet,
    write_lines,
    write_pets,
)
from tuckprop.data import (
    OnDemand,
    Pictures,
    datasets,
    load,
)
from tuckprop.errors import ConfigError, DataError


@dataclass(frozen=True)
class Case:
    """A data set and its tiny tree.

    Attributes:
        write: Writes the tree into a folder.
        inner: Where its files are in there.
        numbers: The training images, by the number of their colour; none where they are drawn otherwise.
        labels: Theirs.
        classes: How many there are.
        some: Names of some classes by label.
        missing: A file without which nothing can be read.
        fetch: What the error then says.
        address: What its address on its makers' server ends in.
    """

    write: Callable[[Path], Path]
    inner: str
    numbers: list[int]
    labels: list[int]
    classes: int
    some: dict[int, str]
    missing: str
    fetch: str
    address: str | None = None
    val: list[int] = field(default_factory=list)


CASES = {
    "cifar100": Case(
        write_cifar100, "cifar-100-python", [], [*range(100)] * 2, 100, {0: "fine0", 99: "fine99"}, "meta",
        "cifar-100-python.tar.gz", "/~kriz/cifar-100-python.tar.gz",
    ),
    "cub200": Case(
        write_cub200, "CUB_200_2011", [1, 3, 5, 7], [0, 1, 199, 0], 200,
        {0: "001.Albatross", 1: "002.Auklet", 199: "200.Yellowthroat"}, "train_test_split.txt", "CUB_200_2011.tgz",
        "/CUB_200_2011.tgz",
    ),
    "flowers102": Case(
        write_flowers102, "flowers-102", [5, 1, 3], [101, 76, 0], 102, {0: "1", 101: "102"}, "setid.mat",
        "102flowers.tgz", "/102flowers.tgz", val=[2, 4, 6],
    ),
    "pets": Case(
        write_pets, "oxford-iiit-pet", [1, 2, 3, 4, 5], [0, 15, 0, 36, 0], 37,
        {0: "Abyssinian", 15: "great_pyrenees", 36: "yorkshire_terrier"}, "annotations/trainval.txt", "images.tar.gz",
        "/pets/data/images.tar.gz",
    ),
    "food101": Case(
        write_food101, "food-101", [1, 2, 3, 4], [0, 100, 0, 1], 101, {0: "apple_pie", 100: "waffles"},
        "meta/train.txt", "food-101.tar.gz", "/cvl/food-101.tar.gz",
    ),
    "imagenet": Case(
        write_imagenet, "", [3, 6, 1, 4, 2, 5], [0, 0, 1, 1, 2, 2], 3, dict(enumerate(WNIDS)), "train",
        "ILSVRC2012_img_train.tar", val=[2, 3, 1, 4],
    ),
}  # fmt: skip
LISTED = [name for name in CASES if name != "cifar100"]


def check_colours(found: Pictures, numbers: list[int]) -> None:
    decoded = found.decode(torch.arange(len(numbers)), 16)
    assert decoded.shape == (len(numbers), 3, 16, 16)
    for image, number in zip(decoded.float(), numbers, strict=True):
        # JPEG keeps a colour to within a few steps.
        assert (image - torch.tensor(colour(number))[:, None, None]).abs().max() <= 4


def test_every_data_set_for_classification_has_a_case() -> None:
    tested_elsewhere = {"cifar10", "digits", "folder"}
    assert set(CASES) == {name for name in datasets if not datasets[name].per_pixel} - tested_elsewhere


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("inside", [False, True])
def test_the_training_images_come_with_their_labels(tmp_path: Path, name: str, inside: bool) -> None:
    case = CASES[name]
    root = case.write(tmp_path)
    found, classes = datasets[name].read(root / case.inner if inside else root)
    assert found.labels.dtype == torch.int64
    assert found.labels.tolist() == case.labels
    assert torch.equal(found.targets(torch.tensor([2, 0]), 8), found.labels[[2, 0]])
    assert len(classes) == len(set(classes)) == case.classes
    assert {label: classes[label] for label in case.some} == case.some
    if case.numbers:
        check_colours(found, case.numbers)
    else:
        images = torch.from_numpy(pictures(200)[0]).permute(0, 3, 1, 2)
        assert torch.equal(found.decode(torch.arange(200), 32), images)


@pytest.mark.parametrize("name", CASES)
def test_a_missing_file_is_named_with_what_to_fetch(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    root = case.write(tmp_path)
    (root / case.inner / case.missing).rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=rf"lacks {case.missing}.*{case.fetch}.*--data-path"):
        datasets[name].read(root)
    with pytest.raises(DataError, match=rf"there is none.*{case.fetch}"):
        datasets[name].read(tmp_path / "absent")


@pytest.mark.parametrize("name", LISTED)
def test_a_truncated_image_is_named(tmp_path: Path, name: str) -> None:
    root = CASES[name].write(tmp_path)
    victims = [path for path in root.rglob("*") if path.suffix in {".jpg", ".JPEG"} and "val" not in path.parts]
    for victim in victims:
        victim.write_bytes(victim.read_bytes()[:-200])
    found, _ = datasets[name].read(root)
    with pytest.raises(DataError, match=rf"(?i)cannot decode the image '.*{victims[0].suffix}'.*truncated"):
        found.decode(torch.tensor([0]), 16)


@pytest.mark.parametrize("name", [name for name in LISTED if name != "imagenet"])
def test_a_listed_image_that_is_missing_is_named_at_once(tmp_path: Path, name: str) -> None:
    root = CASES[name].write(tmp_path)
    for path in root.rglob("*.jpg"):
        path.unlink()
    with pytest.raises(DataError, match=r"\.jpg is missing.*unpack"):
        datasets[name].read(root)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def spoil_cifar100(root: Path) -> None:
    path = root / "cifar-100-python" / "train"
    batch = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps(batch | {b"fine_labels": [100] * 200}, protocol=2))


def spoil_flowers102(root: Path) -> None:
    path = root / "flowers-102" / "imagelabels.mat"
    labels = loadmat(path)["labels"]
    savemat(path, {"labels": np.where(labels == 102, 103, labels)})


SPOILED = {
    "cifar100": (spoil_cifar100, "train: expected labels from 0 to 99, got 100"),
    "cub200": (
        lambda root: replace(root / "CUB_200_2011" / "image_class_labels.txt", "5 200", "5 201"),
        r"image_class_labels\.txt: class of image 5: expected a number from 1 to 200, got '201'",
    ),
    "flowers102": (spoil_flowers102, r"imagelabels\.mat: expected labels from 1 to 102, got 103"),
    "pets": (
        lambda root: replace(root / "oxford-iiit-pet" / "annotations" / "trainval.txt", "1 37 1 1", "1 38 1 1"),
        r"trainval\.txt: breed of yorkshire_terrier_1: expected a number from 1 to 37, got '38'",
    ),
    "food101": (
        lambda root: replace(root / "food-101" / "meta" / "train.txt", "waffles/12", "pizza_soup/12"),
        r"train\.txt: expected CLASS/IMAGE.*'pizza_soup'",
    ),
    "imagenet": (
        lambda root: [path.unlink() for path in (root / "train").rglob("*.JPEG") if path.parent.name != WNIDS[0]],
        "at least two classes",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_label_out_of_range_is_named(tmp_path: Path, name: str) -> None:
    spoil, text = SPOILED[name]
    root = CASES[name].write(tmp_path)
    spoil(root)
    with pytest.raises(DataError, match=text):
        datasets[name].read(root)


@pytest.mark.parametrize(
    ("name", "file", "text"),
    [("cub200", "CUB_200_2011/images.txt", "line 2: expected 2 words"),
     ("cub200", "CUB_200_2011/train_test_split.txt", "line 2: expected 2 words"),
     ("pets", "oxford-iiit-pet/annotations/trainval.txt", "line 2: expected 4 words"),
     ("food101", "food-101/meta/classes.txt", "expected 101 names, each once, got 2")],
)  # fmt: skip
def test_a_list_of_another_layout_is_named(tmp_path: Path, name: str, file: str, text: str) -> None:
    root = CASES[name].write(tmp_path)
    words = {"cub200": "1 2", "pets": "a 1 1 1", "food101": "a"}[name]
    write_lines(root / file, words, "b" if name == "food101" else "1 2 3")
    with pytest.raises(DataError, match=text):
        datasets[name].read(root)
    (root / file).write_text("")
    with pytest.raises(DataError, match="empty"):
        datasets[name].read(root)


def test_a_damaged_matlab_file_is_named(tmp_path: Path) -> None:
    root = write_flowers102(tmp_path)
    path = root / "flowers-102" / "setid.mat"
    whole = path.read_bytes()
    path.write_bytes(whole[:150])
    with pytest.raises(DataError, match=r"setid\.mat: cannot be read as a MATLAB file"):
        datasets["flowers102"].read(root)
    savemat(path, {"tstid": [1]})
    with pytest.raises(DataError, match=r"setid\.mat.*trnid is missing"):
        datasets["flowers102"].read(root)
    savemat(path, {"trnid": [1, 10]})
    with pytest.raises(DataError, match=r"trnid: expected images from 1 to 9, got 10"):
        datasets["flowers102"].read(root)


def test_damaged_names_of_cifar100_are_named(tmp_path: Path) -> None:
    root = write_cifar100(tmp_path)
    (root / "cifar-100-python" / "meta").write_bytes(pickle.dumps({b"fine_label_names": [b"one"]}))
    with pytest.raises(DataError, match="meta: expected a list of 100 'fine_label_names', got 1"):
        datasets["cifar100"].read(root)


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].val])
def test_the_data_sets_own_validation_images_are_taken(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    found = datasets[name].read_val(case.write(tmp_path))
    check_colours(found, case.val)
    loaded = load(name, tmp_path, seed=1, batch_size=2, resolution=16, val_size=2)
    assert (len(loaded.train), sum(len(y) for _, y in loaded.val.serve())) == (len(case.numbers) // 2, 2)
    assert not loaded.per_pixel


@pytest.mark.parametrize("flat", [False, True])
def test_imagenets_validation_images_are_labelled_by_folder_or_by_the_kit(tmp_path: Path, flat: bool) -> None:
    found = datasets["imagenet"].read_val(write_imagenet(tmp_path, flat))
    assert found.labels.tolist() == ([2, 0, 1, 2] if flat else [0, 1, 2, 2])
    check_colours(found, [1, 2, 3, 4] if flat else [2, 3, 1, 4])


def test_imagenets_validation_folders_must_be_those_of_training(tmp_path: Path) -> None:
    root = write_imagenet(tmp_path)
    (root / "val" / WNIDS[0]).rename(root / "val" / "n00000001")
    with pytest.raises(DataError, match=rf"each of the 3 classes.*unknown: n00000001; missing: {WNIDS[0]}"):
        datasets["imagenet"].read_val(root)


def test_imagenets_validation_images_without_labels_are_refused(tmp_path: Path) -> None:
    root = write_imagenet(tmp_path, flat=True)
    data = root / "ILSVRC2012_devkit_t12" / "data"
    truth = data / "ILSVRC2012_validation_ground_truth.txt"
    for lines, text in ((["1", "2", "3", "4"], "from 1 to 3, got '4'"), (["1"], "each of the 4 images in val, got 1")):
        write_lines(truth, *lines)
        with pytest.raises(DataError, match=text):
            datasets["imagenet"].read_val(root)
    (root / "train" / WNIDS[0]).rename(root / "train" / "n99999999")
    with pytest.raises(DataError, match="differ in their classes, such as n01440764"):
        datasets["imagenet"].read_val(root)
    (data / "meta.mat").unlink()
    with pytest.raises(DataError, match=r"in no folders.*meta\.mat.*devkit"):
        datasets["imagenet"].read_val(root)
    (root / "val").rename(root / "test")
    with pytest.raises(DataError, match=r"lacks val.*--half"):
        datasets["imagenet"].read_val(root)


def test_half_of_imagenet_needs_no_validation_images_and_is_augmented(tmp_path: Path) -> None:
    loaded = load("imagenet", scatter(tmp_path, 20), seed=1, batch_size=8, resolution=8, half=1)
    train = loaded.train
    assert isinstance(train, OnDemand)

    def seen(epoch: int) -> Tensor:
        """Return all images of an epoch, in the order of their files."""
        order = train.shuffled(1, epoch)
        ((images, _),) = train.serve(order)
        return images[order.argsort()]

    assert seen(1).shape == (8, 3, 8, 8)
    assert torch.equal(seen(1), seen(1))
    assert not torch.equal(seen(1), seen(2))
    ((first, _),), ((second, _),) = (list(loaded.val.serve(order)) for order in (None, torch.arange(2)))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", CASES)
def test_offline_it_says_what_to_fetch_and_where_to_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    case, asked = CASES[name], []

    def fail(address: str, file: str) -> None:
        asked.append(address)
        raise URLError("no route to host")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    reason = "by hand" if case.address is None else rf"{case.address}: .*no route to host"
    with pytest.raises(DataError, match=rf"{reason}.*{case.fetch}.*--data-path.*put that into {tmp_path}"):
        datasets[name].read(None)
    assert len(asked) == (case.address is not None)


@pytest.mark.parametrize("name", CASES)
def test_what_is_in_the_cache_folder_is_read_without_asking_anyone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    CASES[name].write(tmp_path / "tuckprop" / name)
    assert datasets[name].read(None)[0].labels.tolist() == CASES[name].labels


def test_images_are_read_without_scipy_where_it_is_not_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    assert len(datasets["pets"].read(write_pets(tmp_path / "pets"))[0].labels) == 5
    with pytest.raises(ConfigError, match=r"scipy.*pip install"):
        datasets["flowers102"].read(write_flowers102(tmp_path / "flowers"))
