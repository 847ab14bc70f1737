"""Batches, and the way from a name to batches."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from tests.data.trees import write_folder
from tuckprop.data import Batches, load
from tuckprop.errors import ConfigError

IMAGES = torch.randint(0, 256, (10, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(10)


def test_pixels_are_normalised_by_channel() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    batches = Batches(IMAGES, LABELS, batch_size=4, resolution=4, mean=mean, std=std)
    x, y = next(batches.serve())
    assert y.tolist() == [0, 1, 2, 3]
    for channel in range(3):
        assert_close(x[:, channel], (IMAGES[:4, channel] / 255 - mean[channel]) / std[channel])


def test_small_images_are_enlarged_as_wholes_would_be() -> None:
    x, _ = next(Batches(IMAGES, LABELS, batch_size=4, resolution=9).serve())
    large = torch.nn.functional.interpolate(IMAGES[:4] / 255, size=(9, 9), mode="bilinear")
    assert_close(x, (large - 0.5) / 0.5)


@pytest.mark.parametrize(("drop_last", "sizes"), [(True, [4, 4]), (False, [4, 4, 2])])
def test_the_last_batch_is_dropped_or_not(drop_last: bool, sizes: list[int]) -> None:
    batches = Batches(IMAGES, LABELS, batch_size=4, resolution=4, drop_last=drop_last)
    assert [len(y) for _, y in batches.serve()] == sizes
    assert len(batches) == len(sizes)


def test_orders_differ_by_seed_and_epoch_and_by_nothing_else() -> None:
    batches = Batches(IMAGES, LABELS, batch_size=4, resolution=4)
    order = batches.shuffled(1, 2)
    torch.manual_seed(99)
    assert torch.equal(batches.shuffled(1, 2), order)
    assert not torch.equal(batches.shuffled(1, 3), order)
    assert not torch.equal(batches.shuffled(2, 2), order)
    assert sorted(order.tolist()) == list(range(10))


def test_serving_from_the_middle_goes_on_where_it_stopped() -> None:
    batches = Batches(IMAGES, LABELS, batch_size=3, resolution=4)
    order = batches.shuffled(1, 1)
    whole = [y.tolist() for _, y in batches.serve(order)]
    assert [y.tolist() for _, y in batches.serve(order, start=2)] == whole[2:]
    assert [label for batch in whole for label in batch] == LABELS[order].tolist()


def test_too_few_images_for_a_batch_are_refused() -> None:
    with pytest.raises(ConfigError, match="10 images make no full batch of 11"):
        Batches(IMAGES, LABELS, batch_size=11, resolution=4, drop_last=True)
    with pytest.raises(ConfigError, match="batch_size"):
        Batches(IMAGES, LABELS, batch_size=0, resolution=4)


def test_digits_come_split_and_in_range() -> None:
    loaded = load("digits", seed=1, batch_size=100)
    assert (len(loaded.train.labels), len(loaded.val.labels), len(loaded.classes)) == (1438, 359, 10)
    x, _ = next(loaded.train.serve())
    assert x.shape == (100, 1, 8, 8)
    assert (x.min(), x.max()) == (-1, 1)


def test_own_images_are_decoded_to_the_resolution(tmp_path: Path) -> None:
    loaded = load("folder", write_folder(tmp_path, count=100), seed=1, batch_size=8, resolution=16, train_size=40)
    assert loaded.train.images.shape == (40, 3, 16, 16)
    assert len(loaded.val.labels) == 20


@pytest.mark.parametrize(
    ("name", "path", "resolution", "text"),
    [("nothing", None, 8, "digits"), ("digits", "x", 8, "leave --data-path away"), ("folder", None, 8, "--data-path"),
     ("digits", None, 0, "resolution")],
)  # fmt: skip
def test_wrong_arguments_are_refused(name: str, path: str | None, resolution: int, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        load(name, path and Path(path), seed=1, batch_size=8, resolution=resolution)


def test_real_cifar10(shared_data: Path) -> None:
    loaded = load(
        "cifar10", shared_data / "cifar10", seed=1, batch_size=100, resolution=64, train_size=200, val_size=100
    )
    assert loaded.train.images.shape == (200, 3, 32, 32)
    assert loaded.train.labels.bincount().tolist() == [20] * 10
    x, _ = next(loaded.val.serve())
    assert x.shape == (100, 3, 64, 64)
    # Natural images: neither constant nor noise; bright ships' and planes' skies, dark frogs.
    brightness = {
        name: loaded.train.images[loaded.train.labels == label].float().mean().item()
        for label, name in enumerate(loaded.classes)
    }
    assert brightness["airplane"] > brightness["frog"]
