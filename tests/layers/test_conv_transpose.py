"""What is particular to ConvTranspose1d, ConvTranspose2d and ConvTranspose3d."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tests.cases import LAYERS, RandomTucker, decaying
from tests.layers.contract import TIGHT
from tuckprop import convert


@pytest.mark.parametrize("output_size", [(9, 7), (10, 8), (10, 7)], ids=str)
@pytest.mark.parametrize("by_keyword", [False, True])
def test_the_output_size_of_a_call(output_size: tuple[int, int], by_keyword: bool, forced: None) -> None:
    runs = []
    for codec in (None, RandomTucker(1.0)):
        torch.manual_seed(0)
        layer = nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, dtype=torch.float64)
        if codec:
            convert(layer, codec)
        x = decaying((2, 3, 5, 4), seed=1).requires_grad_()
        y = layer(x, output_size=list(output_size)) if by_keyword else layer(x, list(output_size))
        assert y.shape[2:] == output_size
        y.square().sum().backward()
        runs.append((y, x.grad, layer.weight.grad, layer.bias.grad))
    assert torch.equal(runs[0][0], runs[1][0])
    assert_close(runs[1], runs[0], **TIGHT)


def test_an_output_size_that_cannot_be_gives_pytorchs_own_error() -> None:
    messages = []
    for codec in (None, RandomTucker(1.0)):
        layer = nn.ConvTranspose2d(3, 4, 3, stride=2)
        if codec:
            convert(layer, codec)
        with pytest.raises(ValueError, match="requested an output size") as raised:
            layer(torch.randn(1, 3, 5, 4), [30, 30])
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


def test_it_is_the_transpose_of_the_convolution() -> None:
    """`<conv(x, w), y> = <x, conv_transpose(y, w)>`, so the weight gradients of both sides are equal."""
    conv = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False, dtype=torch.float64)
    transposed = nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        transposed.weight.copy_(conv.weight)
    for layer in (conv, transposed):
        convert(layer, RandomTucker(1.0))
    x, y = decaying((2, 3, 9, 7), seed=1), decaying((2, 4, 5, 4), seed=2)
    left, right = (conv(x) * y).sum(), (transposed(y) * x).sum()
    assert_close(left, right, **TIGHT)
    (of_conv,) = torch.autograd.grad(left, conv.weight)
    (of_transposed,) = torch.autograd.grad(right, transposed.weight)
    assert_close(of_conv, of_transposed, **TIGHT)


def test_the_matrix_covers_every_option() -> None:
    for plain in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d):
        options = [case.options for case in LAYERS if case.plain is plain]
        for name in ("stride", "padding", "output_padding", "dilation", "groups"):
            present = any(name in each for each in options)
            assert present or (plain is nn.ConvTranspose2d and name == "output_padding"), (plain, name)
