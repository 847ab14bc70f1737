"""Two halves that share few classes."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.data.trees import write_folder
from tuckprop.data import halves, load
from tuckprop.errors import ConfigError
from tuckprop.train import DataSettings, Machine, NetworkSettings
from tuckprop.train.prepare import prepare


@given(st.lists(st.integers(0, 9), min_size=2, max_size=200).filter(lambda x: len(set(x)) > 1), st.integers(0, 10**6))
def test_every_image_is_in_one_half_and_they_are_as_large(labels: list[int], seed: int) -> None:
    first, second = halves(torch.tensor(labels), seed)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(len(labels)))
    # Shards differ by one image at most.
    assert abs(len(first) - len(second)) <= len(set(labels)) // 2


def test_equal_classes_are_not_divided() -> None:
    labels = torch.arange(1000) % 10
    first, second = (set(labels[half].tolist()) for half in halves(labels))
    assert len(first) == len(second) == 5
    assert not first & second


def test_classes_of_imagenets_sizes_are_shared_as_in_gradient_filters_partition() -> None:
    # 1000 classes of 732 to 1300 images; there 99 are shared.
    sizes = torch.randint(732, 1301, (1000,), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(1000).repeat_interleave(sizes)
    first, second = (set(labels[half].unique().tolist()) for half in halves(labels))
    assert 75 <= len(first & second) <= 125
    assert len(first | second) == 1000


def test_the_seed_decides_alone() -> None:
    labels = torch.arange(1000) % 10
    halved = halves(labels, 1)[0]
    torch.manual_seed(77)
    assert torch.equal(halves(labels, 1)[0], halved)
    assert any(not torch.equal(halves(labels, seed)[0], halved) for seed in range(2, 5))


def test_one_class_cannot_be_halved() -> None:
    with pytest.raises(ConfigError, match="two classes, got 1"):
        halves(torch.zeros(10, dtype=torch.int64))


def classes_of(path: Path, half: int | None, seed: int) -> tuple[set[int], int]:
    """Return the classes that are trained and validated on, which must be the same, and the number of images."""
    loaded = load("folder", path, seed=seed, batch_size=8, resolution=4, half=half)
    train, val = (set(part.labels.tolist()) for part in (loaded.train, loaded.val))
    assert train == val
    assert len(loaded.classes) == 10
    assert len(loaded.val.labels) * 4 == len(loaded.train.labels)
    return train, len(loaded.train.labels) + len(loaded.val.labels)


def test_runs_of_any_seed_use_the_same_halves(tmp_path: Path) -> None:
    path = write_folder(tmp_path, count=100)
    first, count = classes_of(path, 0, seed=1)
    second, rest = classes_of(path, 1, seed=1)
    assert (len(first), len(second), count, rest) == (5, 5, 50, 50)
    assert not first & second
    assert classes_of(path, 1, seed=2)[0] == second
    assert classes_of(path, None, seed=1) == (first | second, 100)


def test_there_are_two_halves(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="half: expected 0 or 1"):
        load("digits", seed=1, batch_size=8, half=2)


def test_the_setting_reaches_the_data() -> None:
    prepared = [
        prepare(NetworkSettings(), DataSettings(half=half, batch_size=32), Machine(device="cpu"), seed=1)
        for half in (0, 1)
    ]
    first, second = (run.data.train.labels.unique().tolist() for run in prepared)
    # Digits are of unequal numbers, so that some classes are divided, but not all.
    assert set(first) | set(second) == set(range(10))
    assert len(set(first) & set(second)) < 8
