"""Patch sums against a loop, and what they say of themselves."""

import pytest
import torch
from torch.testing import assert_close

from tests.cases import decaying
from tests.layers import gradient_filter_reference as reference
from tuckprop import GradientFilter
from tuckprop.errors import UnsupportedError


@pytest.mark.parametrize("patch", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("size", [(8, 8), (7, 9), (5, 6), (1, 1)], ids=str)
def test_sums_are_over_patches_that_tile_from_the_centre(patch: int, size: tuple[int, int]) -> None:
    x = decaying((2, 3, *size), seed=1)
    packed = GradientFilter(patch).compress(x)
    assert_close(packed.sums, reference.filtered_input(x, x.shape, patch, (1, 1)), rtol=1e-12, atol=1e-12)
    assert packed.paper_count() == packed.sums.numel() == 6 * -(-size[0] // patch) * -(-size[1] // patch)


@pytest.mark.parametrize(("stride", "out"), [((2, 2), (4, 5)), ((1, 3), (8, 3)), ((3, 3), (2, 3))], ids=str)
def test_under_a_stride_a_block_is_so_much_larger(stride: tuple[int, int], out: tuple[int, int]) -> None:
    x = decaying((2, 3, 8, 9), seed=1)
    packed = GradientFilter(2).patch_sums(x, out, stride)
    expected = reference.filtered_input(x, torch.Size((2, 3, *out)), 2, stride)
    assert_close(packed.sums, expected, rtol=1e-12, atol=1e-12)


def test_the_activation_is_read_as_the_mean_of_each_patch() -> None:
    x = decaying((2, 3, 8, 8), seed=1)
    means = x.unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5))
    dense = GradientFilter(2).compress(x).dense()
    assert_close(dense, means.repeat_interleave(2, 2).repeat_interleave(2, 3), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 6), (1, 4, 5, 6, 7)], ids=str)
def test_what_is_no_batch_of_maps_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UnsupportedError, match=r"expected \[batch, channels, height, width\], got \(") as raised:
        GradientFilter(2).compress(torch.zeros(shape))
    assert str(shape) in str(raised.value)
