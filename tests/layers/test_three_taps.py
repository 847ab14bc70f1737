"""Convolutions of 3 x 3 taps by Winograd's algorithm: who is served, and that nobody can tell from the result."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from tests.layers.own_path import assert_left_alone, assert_same_training
from tests.native.compiler import needs_compiler
from tuckprop import HOSVD, Dense, native
from tuckprop.codecs import Codec
from tuckprop.layers import _three_taps

# A sum of products may be off by a few roundings of the sum of their sizes.
ROUNDINGS = 32 * torch.finfo(torch.float32).eps


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@needs_compiler
@given(
    samples=st.integers(1, 40),
    channels=st.integers(1, 40),
    outputs=st.integers(1, 70),
    plane=st.tuples(st.integers(1, 12), st.integers(1, 40)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    bias=st.booleans(),
)
@example(samples=1, channels=1, outputs=1, plane=(1, 1), padding=(1, 1), bias=True)
@example(samples=3, channels=17, outputs=130, plane=(5, 140), padding=(1, 0), bias=True)
@example(samples=2, channels=140, outputs=33, plane=(3, 4), padding=(2, 2), bias=False)
@example(samples=6, channels=260, outputs=250, plane=(19, 20), padding=(1, 1), bias=False)
@example(samples=40, channels=130, outputs=200, plane=(4, 4), padding=(1, 1), bias=False)
def test_the_kernels_are_the_convolution(
    samples: int, channels: int, outputs: int, plane: tuple[int, int], padding: tuple[int, int], bias: bool
) -> None:
    m, n = (size + 2 * pad - 2 for size, pad in zip(plane, padding, strict=True))
    if min(m, n) < 1:
        return
    x, weight = normal(samples, channels, *plane, seed=0), normal(outputs, channels, 3, 3, seed=1)
    grad, shift = normal(samples, outputs, m, n, seed=2), normal(outputs, seed=3) if bias else None
    y, grad_x, grad_weight = (torch.full_like(t, torch.nan) for t in (grad, x, weight))
    native.winograd(x, weight, shift, y, padding)
    native.winograd_input(grad, weight, grad_x, padding)
    native.winograd_weight(x, grad, grad_weight, padding)

    def exact(function: Any, *tensors: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the result in double precision, and that of the sizes."""
        doubles = [None if t is None else t.double() for t in tensors]
        sizes = [None if t is None else t.abs() for t in doubles]
        return function(*doubles), function(*sizes)

    for got, (expected, size) in (
        (y, exact(lambda x, w, b: F.conv2d(x, w, b, padding=padding), x, weight, shift)),
        (grad_x, exact(lambda g, w: F.conv_transpose2d(g, w, padding=padding), grad, weight)),
        (grad_weight, exact(lambda x, g: conv2d_weight(x, weight.shape, g, padding=padding), x, grad)),
    ):
        assert torch.all((got - expected).abs() <= ROUNDINGS * size.max())


@needs_compiler
def test_rounding_is_near_that_of_a_library() -> None:
    x, weight = normal(4, 256, 16, 16, seed=0), normal(64, 256, 3, 3, seed=1)
    y = torch.empty(4, 64, 16, 16)
    native.winograd(x, weight, None, y, (1, 1))
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    error, plain = ((t - exact).norm() for t in (y, F.conv2d(x, weight, padding=1)))
    assert error < 4 * plain
    grad, grad_weight = normal(4, 64, 16, 16, seed=2), torch.empty_like(weight)
    native.winograd_weight(x, grad, grad_weight, (1, 1))
    exact = conv2d_weight(x.double(), weight.shape, grad.double(), padding=1)
    error, plain = ((t - exact).norm() for t in (grad_weight, conv2d_weight(x, weight.shape, grad, padding=1)))
    assert error < 4 * plain


@needs_compiler
@pytest.mark.parametrize(("channels", "side"), [(40, 24), (260, 24), (260, 4)], ids=["groups", "rounds", "at once"])
def test_the_weight_gradient_is_the_same_for_any_number_of_threads(channels: int, side: int) -> None:
    x, grad = normal(6, channels, side, side, seed=0), normal(6, 250, side, side, seed=1)
    before, found = torch.get_num_threads(), [torch.empty(250, channels, 3, 3) for _ in range(3)]
    try:
        for threads, out in enumerate(found, 1):
            torch.set_num_threads(threads)
            native.winograd_weight(x, grad, out, (1, 1))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(out, found[0]) for out in found)


LAYERS = {
    "padded": (nn.Conv2d(12, 24, 3, padding=1), (3, 12, 8, 9)),
    "no bias": (nn.Conv2d(12, 24, 3, padding=1, bias=False), (3, 12, 14, 7)),
    "no padding": (nn.Conv2d(12, 24, 3), (3, 12, 10, 12)),
    "padding as the kernel asks": (nn.Conv2d(12, 24, 3, padding="same"), (3, 12, 8, 8)),
    "large padding": (nn.Conv2d(12, 24, 3, padding=2), (3, 12, 8, 8)),
}


@needs_compiler
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("codec", [Dense(), HOSVD(1 - 1e-13)], ids=["input", "packed"])
def test_output_and_gradients_are_the_plain_ones(name: str, codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, shape = LAYERS[name]
    served = assert_same_training(_three_taps, layer, shape, codec, monkeypatch)
    assert served == ["output", "weight_gradient", "input_gradient"]


def image(*shape: int) -> Tensor:
    return normal(*shape, seed=0)


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Conv2d(12, 20, 3, stride=2), image(3, 12, 16, 16)),
        (nn.Conv2d(12, 20, 3, dilation=2), image(3, 12, 16, 16)),
        (nn.Conv2d(12, 20, 3, groups=4), image(3, 12, 16, 16)),
        (nn.Conv2d(12, 20, 3, padding=1, padding_mode="reflect"), image(3, 12, 16, 16)),
        (nn.Conv2d(12, 20, 3, padding=3), image(3, 12, 16, 16)),
        (nn.Conv2d(12, 20, (3, 1)), image(3, 12, 16, 16)),
        (nn.Conv2d(12, 20, 5), image(3, 12, 16, 16)),
        (nn.Conv2d(3, 20, 3), image(3, 3, 16, 16)),
        (nn.Conv2d(12, 4, 3), image(3, 12, 16, 16)),
        (nn.Conv2d(12, 20, 3, padding=1), image(1, 12, 8, 8)),
        (nn.Conv2d(12, 20, 3, padding=1), image(32, 12, 5, 5)),
        (nn.Conv1d(12, 20, 3), image(3, 12, 160)),
        (nn.Conv3d(12, 20, 3), image(3, 12, 8, 8, 8)),
        (nn.Conv2d(12, 20, 3), image(3, 12, 16, 16).contiguous(memory_format=torch.channels_last)),
        (nn.Conv2d(12, 20, 3).to(memory_format=torch.channels_last), image(3, 12, 16, 16)),
        (nn.Conv2d(12, 20, 3).double(), image(3, 12, 16, 16).double()),
        (nn.Conv2d(12, 20, 3).bfloat16(), image(3, 12, 16, 16).bfloat16()),
    ],
    ids=lambda value: str(value) if isinstance(value, nn.Module) else "",
)
def test_all_others_are_left_to_pytorch(layer: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_left_alone(_three_taps, layer, x, monkeypatch)
