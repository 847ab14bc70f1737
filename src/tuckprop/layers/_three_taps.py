"""Convolutions of 3 x 3 taps at stride 1 on a CPU, channels first, by Winograd's F(2 x 2, 3 x 3).

A library's convolution multiplies 36 times for 2 x 2 outputs, at the speed of a large product; this multiplies 16 times
(`native/winograd.c`), for the gradient of the weight too (`native/winograd_weight.c`). Its sums are of other order. The
rounding errors of output and input gradient are one to three times those of the library, those of the weight's gradient
about the same, or smaller.
"""

from math import prod

import torch
from torch import Size, Tensor, nn

from tuckprop import native
from tuckprop.layers._geometry import Geometry

# Fewer channels leave vectors empty.
_CHANNELS = 8

# Fewer tiles are not worth the transform of the taps.
_TILES = 32

# The weight gradient of so few pairs of channels is not worth the memory that it takes.
_PAIRS = 256

# Time of the weight gradient, of that which a large product takes for the multiplications that a library makes.
WEIGHT_SLOWDOWN = 0.65

# Multiplications for one that a library makes, at most: small odd planes fill their tiles badly.
_SHARE = 0.6


def serves(x: Tensor, shape: Size, weight: Tensor, geometry: Geometry) -> bool:
    """Say whether `output` and `input_gradient` take these.

    Args:
        x: Input of the layer or gradient of its output, [b, c, h, v].
        shape: Shape of the input.
        weight: [o, c, 3, 3].
        geometry: The layer's geometry.
    """
    return (
        geometry.is_three_by_three
        and min(weight.shape[:2]) >= _CHANNELS
        and type(x) in {Tensor, nn.Parameter}
        and x.is_contiguous()
        and native.serves(x)
        and weight.dtype == x.dtype
        # A weight in channels_last asks for such an output.
        and weight.is_contiguous()
        and _pays(shape[0], _positions(shape, geometry))
        and not torch.compiler.is_compiling()
    )


def serves_weight(x: Tensor, shape: Size, weight: Tensor, geometry: Geometry) -> bool:
    """Say whether `weight_gradient` takes these; arguments as for `serves`."""
    return serves(x, shape, weight, geometry) and prod(weight.shape[:2]) >= _PAIRS


def _positions(shape: Size, geometry: Geometry) -> list[int]:
    return [size + 2 * pad - 2 for size, pad in zip(shape[2:], geometry.implicit, strict=True)]


def _pays(samples: int, positions: list[int]) -> bool:
    """Say whether there are enough tiles, and few enough for these output positions a sample."""
    tiles = prod(-(-size // 2) for size in positions)
    return samples * tiles >= _TILES and 16 * tiles <= _SHARE * 9 * prod(positions)


def output(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Return the convolution of `x` [b, c, h, v] with `weight` [o, c, 3, 3] and `bias` [o]: [b, o, m, n]."""
    y = x.new_empty(len(x), len(weight), *_positions(x.shape, geometry))
    native.winograd(x, weight, bias, y, geometry.implicit)
    return y


def input_gradient(grad: Tensor, weight: Tensor, shape: Size, geometry: Geometry) -> Tensor:
    """Return the gradient of an input of this shape from that of the output, [b, o, m, n]."""
    out = grad.new_empty(shape)
    native.winograd_input(grad, weight, out, geometry.implicit)
    return out


def weight_gradient(x: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Return the gradient of the weight [o, c, 3, 3] from input [b, c, h, v] and output gradient [b, o, m, n]."""
    out = torch.empty_like(weight, memory_format=torch.contiguous_format)
    native.winograd_weight(x, grad.contiguous(), out, geometry.implicit)
    return out
