"""Batches that are decoded while they are served, against those in memory."""

import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.data.trees import write_folder
from tuckprop.data import ArrayPictures, Batches, OnDemand, load, read_folder
from tuckprop.data.augment import crop_and_flip
from tuckprop.errors import ConfigError, DataError

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8, generator=GENERATOR)
PICTURES = ArrayPictures(IMAGES, torch.arange(50))
SUBSET = torch.randperm(50, generator=GENERATOR)[:43]
MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("drop_last", [True, False])
def test_they_are_those_of_images_in_memory(workers: int, drop_last: bool) -> None:
    settings = {"batch_size": 10, "resolution": 12, "mean": MEAN, "std": STD, "drop_last": drop_last}
    memory = Batches(IMAGES[SUBSET], torch.arange(50)[SUBSET], **settings)
    demand = OnDemand(PICTURES, SUBSET, workers=workers, **settings)
    assert len(demand) == len(memory) == (4 if drop_last else 5)
    order = demand.shuffled(3, 2)
    assert torch.equal(order, memory.shuffled(3, 2))
    for given in ({}, {"order": order}, {"order": order, "start": 2}):
        pairs = list(zip(demand.serve(**given), memory.serve(**given), strict=True))
        assert len(pairs) == len(memory) - given.get("start", 0)
        for (x, y), (reference, labels) in pairs:
            assert torch.equal(x, reference)
            assert torch.equal(y, labels)


class Slow(ArrayPictures):
    """Keeps count of what is decoded, and may hold one image back."""

    def __init__(self) -> None:
        super().__init__(IMAGES, torch.arange(50))
        self.decoded: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def decode(self, indices: Tensor, resolution: int) -> Tensor:
        if 0 in indices.tolist():
            assert self.gate.wait(timeout=20)
        self.decoded += indices.tolist()
        return super().decode(indices, resolution)


def test_no_more_than_two_batches_are_decoded_ahead() -> None:
    pictures = Slow()
    served = OnDemand(pictures, torch.arange(50), batch_size=5, resolution=8, workers=4).serve()
    next(served)
    served.close()
    assert set(range(5)) <= set(pictures.decoded) <= set(range(15))


def test_batches_come_in_order_though_the_first_is_the_slowest() -> None:
    pictures = Slow()
    pictures.gate.clear()
    threading.Timer(0.2, pictures.gate.set).start()
    batches = OnDemand(pictures, torch.arange(50), batch_size=10, resolution=8, workers=4)
    assert torch.cat([y for _, y in batches.serve()]).tolist() == list(range(50))
    assert pictures.decoded[0] != 0


def test_threads_end_with_the_epoch_and_with_a_consumer_that_stops() -> None:
    batches = OnDemand(PICTURES, SUBSET, batch_size=10, resolution=8, workers=3)
    list(batches.serve())
    served = batches.serve()
    next(served)
    served.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tuckprop-decode")]


def test_a_truncated_image_is_named_when_its_batch_is_due(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, count=40)
    victim = folder / "truck" / "0039.png"
    victim.write_bytes(victim.read_bytes()[:1500])
    found, _ = read_folder(folder)
    served = OnDemand(found, torch.arange(40), batch_size=20, resolution=8).serve()
    next(served)
    with pytest.raises(DataError, match=r"truck/0039\.png"):
        next(served)


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match="50 images make no full batch of 51"):
        OnDemand(PICTURES, torch.arange(50), batch_size=51, resolution=8, drop_last=True)
    with pytest.raises(ConfigError, match="workers"):
        OnDemand(PICTURES, torch.arange(50), batch_size=5, resolution=8, workers=0)


def test_augmented_images_differ_by_epoch_and_by_nothing_else(tmp_path: Path) -> None:
    found, _ = read_folder(write_folder(tmp_path))
    one, two = (
        OnDemand(found, torch.arange(30), batch_size=10, resolution=16, augment=crop_and_flip, workers=workers)
        for workers in (1, 3)
    )

    def epoch(batches: OnDemand, number: int) -> tuple[Tensor, Tensor]:
        """Return all images of an epoch, sorted by their place in the folder."""
        order = batches.shuffled(1, number)
        images, labels = (torch.cat(parts) for parts in zip(*batches.serve(order), strict=True))
        return images[order.argsort()], labels[order.argsort()]

    images, labels = epoch(one, 1)
    torch.manual_seed(99)
    assert torch.equal(images, epoch(two, 1)[0])
    assert torch.equal(labels, found.labels)
    others = epoch(one, 2)[0]
    assert all(not torch.equal(a, b) for a, b in zip(images, others, strict=True))
    order = one.shuffled(1, 1)
    rest = torch.cat([x for x, _ in two.serve(order, start=2)])
    assert torch.equal(rest, images[order[20:]])


def test_size_alone_decides_whether_images_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path, count=100)
    wanted = {"seed": 1, "batch_size": 8, "resolution": 16}
    small = load("folder", folder, **wanted)
    # One byte less than 100 images of 3 x 16 x 16 with labels of 8 bytes.
    # The function hides its module.
    monkeypatch.setattr(sys.modules["tuckprop.data.load"], "_MOST_BYTES", 100 * (3 * 16 * 16 + 8) - 1)
    large = load("folder", folder, **wanted)
    assert {type(small.train), type(small.val)} == {Batches}
    assert {type(large.train), type(large.val)} == {OnDemand}
    for a, b in ((small.train, large.train), (small.val, large.val)):
        for (x, y), (u, v) in zip(a.serve(a.shuffled(5, 1)), b.serve(b.shuffled(5, 1)), strict=True):
            assert_close(x, u, rtol=0, atol=0)
            assert torch.equal(y, v)
    assert type(load("folder", folder, train_size=70, **wanted).train) is Batches
