"""Splits and subsets."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tuckprop.data import split
from tuckprop.errors import ConfigError

LABELS = torch.arange(500) % 7


@given(st.lists(st.integers(0, 4), min_size=20, max_size=200), st.integers(0, 10**6))
def test_no_image_is_in_both_and_all_are_used(labels: list[int], seed: int) -> None:
    train, val = split(torch.tensor(labels), seed)
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(len(labels)))


@given(st.integers(1, 380), st.integers(1, 90), st.integers(0, 10**6))
def test_subsets_have_as_many_of_each_class_to_within_one(train_size: int, val_size: int, seed: int) -> None:
    for indices, size in zip(split(LABELS, seed, train_size=train_size, val_size=val_size), (train_size, val_size),
                             strict=True):  # fmt: skip
        counts = LABELS[indices].bincount(minlength=7)
        assert len(indices.unique()) == len(indices) == size
        assert counts.max() - counts.min() <= 1


def test_nothing_to_validate_on_is_said() -> None:
    with pytest.raises(ConfigError, match="hold 20% of them out for validation, of 6 images"):
        split(torch.arange(6) // 2, 1)


def test_the_seed_decides_alone() -> None:
    again = [split(LABELS, 3, train_size=50) for _ in range(2)]
    assert torch.equal(again[0][0], again[1][0])
    assert torch.equal(again[0][1], again[1][1])
    torch.manual_seed(77)
    assert torch.equal(split(LABELS, 3, train_size=50)[0], again[0][0])
    assert not torch.equal(split(LABELS, 4, train_size=50)[0], again[0][0])


def test_a_smaller_subset_is_part_of_a_larger_one() -> None:
    small, large = (split(LABELS, 3, train_size=size)[0].tolist() for size in (40, 200))
    assert set(small) < set(large)


@pytest.mark.parametrize("sizes", [{"train_size": 0}, {"train_size": 411}, {"val_size": -1}, {"val_size": 100}])
def test_a_size_that_is_not_there_is_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(sizes))):
        split(LABELS, 0, **sizes)
