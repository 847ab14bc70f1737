"""Deflating bytes and flags loses nothing and never grows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tuckprop.linalg.deflate import deflate, deflate_flags, inflate, inflate_flags


@given(count=st.integers(0, 3000), kinds=st.integers(1, 256), seed=st.integers(0, 9))
def test_bytes_come_back(count: int, kinds: int, seed: int) -> None:
    data = torch.randint(kinds, (count,), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    small = deflate(data)
    assert small.dtype == torch.uint8
    assert small.untyped_storage().nbytes() <= max(count, 1)
    assert torch.equal(inflate(small, count), data)


@given(
    shape=st.lists(st.integers(1, 9), max_size=4), share=st.sampled_from([0.0, 0.1, 0.5, 1.0]), seed=st.integers(0, 9)
)
def test_flags_come_back(shape: list[int], share: float, seed: int) -> None:
    flags = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share
    data = deflate_flags(flags)
    assert data.numel() <= -(-flags.numel() // 8)
    assert torch.equal(inflate_flags(data, flags.shape), flags)


@pytest.mark.parametrize("last", [False, True])
def test_strides_do_not_matter(last: bool) -> None:
    flags = torch.rand(4, 6, 5, 3) < 0.3
    given_flags = flags.contiguous(memory_format=torch.channels_last) if last else flags.permute(3, 2, 1, 0)
    expected = given_flags.clone()
    assert torch.equal(inflate_flags(deflate_flags(given_flags), expected.shape), expected)


def test_one_channel_of_one_kind_costs_next_to_nothing() -> None:
    assert deflate_flags(torch.ones(64, 32, 16, 16, dtype=torch.bool)).numel() < 600


def test_zero_elements() -> None:
    assert inflate_flags(deflate_flags(torch.zeros(0, 3, dtype=torch.bool)), (0, 3)).shape == (0, 3)
