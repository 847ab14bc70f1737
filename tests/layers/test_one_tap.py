"""Convolutions of one tap as products of matrices: who is served, and that nobody can tell from the result."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import tuckprop
from tests.layers.own_path import assert_left_alone, assert_same_training
from tests.native.compiler import needs_compiler
from tuckprop import HOSVD, Dense
from tuckprop.codecs import Codec
from tuckprop.layers import _one_tap

LAYERS = {
    "1d": (nn.Conv1d(4, 6, 1), (3, 4, 60)),
    "2d": (nn.Conv2d(4, 6, 1), (3, 4, 8, 9)),
    "2d, no bias": (nn.Conv2d(4, 6, 1, bias=False), (3, 4, 7, 7)),
    "3d": (nn.Conv3d(4, 6, 1), (2, 4, 4, 4, 4)),
    "strided": (nn.Conv2d(4, 6, 1, stride=2), (3, 4, 17, 16)),
    "strides of its own": (nn.Conv3d(4, 6, 1, stride=(1, 3, 2), bias=False), (2, 4, 5, 10, 8)),
    "one channel": (nn.Conv2d(1, 6, 1), (3, 1, 8, 9)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("codec", [Dense(), HOSVD(1 - 1e-13)], ids=["input", "packed"])
def test_output_and_gradients_are_the_plain_ones(name: str, codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, shape = LAYERS[name]
    assert "output" in assert_same_training(_one_tap, layer, shape, codec, monkeypatch)


@needs_compiler
@pytest.mark.parametrize(("channels", "outputs"), [(4, 6), (70, 33), (1, 1)])
@pytest.mark.parametrize("side", [4, 8])
def test_compiled_products_are_the_plain_ones(channels: int, outputs: int, side: int) -> None:
    layer, x = nn.Conv2d(channels, outputs, 1), torch.randn(3, channels, side, side, requires_grad=True)
    grad = torch.randn(3, outputs, side, side)
    exact, double = copy.deepcopy(layer).double(), x.detach().double().requires_grad_()
    exact(double).backward(grad.double())
    y = tuckprop.convert(layer, Dense())(x)
    y.backward(grad)
    assert_close(y.double(), exact(double), rtol=1e-4, atol=1e-4)
    assert_close(x.grad.double(), double.grad, rtol=1e-4, atol=1e-4)
    assert_close(layer.weight.grad.double(), exact.weight.grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Conv2d(4, 6, 1, stride=2), torch.randn(2, 4, 5, 6)),
        (nn.ConvTranspose2d(4, 6, 1, stride=2), torch.randn(2, 4, 16, 16)),
        (nn.Conv2d(4, 6, 1, padding=1), torch.randn(2, 4, 16, 16)),
        (nn.Conv2d(4, 6, 1, groups=2), torch.randn(2, 4, 16, 16)),
        (nn.Conv2d(4, 6, (1, 3)), torch.randn(2, 4, 16, 16)),
        (nn.Conv2d(4, 6, 1), torch.randn(2, 4, 3, 5)),
        (nn.Conv2d(4, 6, 1), torch.randn(2, 4, 16, 16).contiguous(memory_format=torch.channels_last)),
        (nn.Conv2d(4, 6, 1).to(memory_format=torch.channels_last), torch.randn(2, 4, 16, 16)),
        (nn.Conv2d(4, 6, 1).double(), torch.randn(2, 4, 16, 16).double()),
        (nn.Conv2d(4, 6, 1).bfloat16(), torch.randn(2, 4, 16, 16).bfloat16()),
    ],
)
def test_all_others_are_left_to_pytorch(layer: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_left_alone(_one_tap, layer, x, monkeypatch)
