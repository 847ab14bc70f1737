"""Sizes of a convolution."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given

from tests.theory.made import Layer, layers
from tuckprop.errors import ConfigError
from tuckprop.theory import Convolution, storage


@given(layers())
def test_the_outputs_size_is_that_of_torch(layer: Layer) -> None:
    c = layer.conv
    y = F.conv2d(layer.input(), layer.weight(), None, layer.stride, layer.padding, layer.dilation, c.groups)
    assert y.shape == (c.batch, c.outputs, c.out_height, c.out_width)
    assert c.positions == y[0, 0].numel()
    assert c.elements == torch.empty(c.shape).numel()
    assert [c.unfolding(mode) for mode in range(4)] == [(n, c.elements // n) for n in c.shape]


def test_a_cube_has_all_sizes_alike() -> None:
    assert Convolution.cube(7, 3) == Convolution.of_layer(7, 7, 7, 7, 7, 3, padding=1)
    assert Convolution.cube(7, 3).taps == 9


@pytest.mark.parametrize(
    ("sizes", "options", "text"),
    [
        ((0, 1, 8, 8, 1, 3), {}, "batch"),
        ((1, 1, 8, 8, True, 3), {}, "outputs"),
        ((1, 4, 8, 8, 6, 3), {"groups": 4}, "groups=4"),
        ((1, 1, 2, 8, 1, 3), {}, "window of 3 does not fit 2 x 8"),
        ((1, 1, 8, 8, 1, 3), {"stride": 0}, "stride"),
        ((1, 1, 8, 8, 1, 3), {"padding": -1}, "padding"),
        ((1, 1, 8, 8, 1, 3), {"dilation": 0}, "dilation"),
    ],
)
def test_impossible_sizes_are_refused(sizes: tuple[int, ...], options: dict[str, int], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Convolution.of_layer(*sizes, **options)


@pytest.mark.parametrize("ranks", [(1, 1, 1), (0, 1, 1, 1), (1, 5, 1, 1), (1, 1, 1, 1, 1)])
def test_impossible_ranks_are_refused(ranks: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="ranks: expected 4"):
        storage.hosvd_elements(Convolution.cube(4, 1), ranks)
