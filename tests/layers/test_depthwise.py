"""Depthwise convolutions on planes: who is served by kernels of our own, and that nobody can tell from the result."""

import pytest
import torch
from torch import nn

from tests.cases import decaying
from tests.layers.own_path import assert_left_alone, assert_same_training
from tests.native.compiler import needs_compiler
from tuckprop import HOSVD, Dense
from tuckprop.codecs import Codec
from tuckprop.layers import _depthwise


@needs_compiler
@pytest.mark.parametrize("codec", [Dense(), HOSVD(1 - 1e-13)], ids=repr)
@pytest.mark.parametrize(
    ("layer", "side"),
    [
        (nn.Conv2d(6, 6, 3, padding=1, groups=6), 14),
        (nn.Conv2d(6, 6, 5, padding=2, groups=6, bias=False), 14),
        (nn.Conv2d(6, 6, 3, padding=1, dilation=2, groups=6), 16),
        (nn.Conv2d(6, 6, 3, padding=1, stride=2, groups=6), 28),
        (nn.Conv2d(6, 6, 7, padding=3, groups=6), 28),
    ],
    ids=str,
)
def test_who_is_served(layer: nn.Conv2d, side: int, codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    served = assert_same_training(_depthwise, layer, (4, 6, side, side), codec, monkeypatch)
    assert served == ["output", "weight_gradient", "input_gradient"]


@pytest.mark.parametrize(
    ("layer", "side"),
    [
        (nn.Conv2d(6, 6, 3, padding=1, groups=6), 13),
        (nn.Conv2d(6, 6, 3, padding=1, stride=2, groups=6), 16),
        (nn.Conv2d(6, 6, 7, padding=3, groups=6), 16),
        (nn.Conv2d(6, 12, 3, padding=1, groups=6), 30),
        (nn.Conv2d(6, 6, 3, padding=1, groups=3), 30),
        (nn.Conv2d(6, 6, 3, padding="same", padding_mode="reflect", groups=6), 30),
    ],
    ids=str,
)
def test_who_is_left_alone(layer: nn.Conv2d, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = decaying((4, 6, side, side), seed=1, dtype=torch.float32)
    assert_left_alone(_depthwise, layer, x.requires_grad_(), monkeypatch)
