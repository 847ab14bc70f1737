"""Convolutions of one tap (1 x 1) on a CPU, channels first, as one product of matrices a sample.

Index legend: b batch, c input channels, o output channels, p positions; X input, W weight, G output gradient:
    Y[b] = W X[b]        dX[b] = W^T G[b]        dW = sum_b G[b] X[b]^T
With a stride, X are the positions that it meets, and dX is zero elsewhere.
PyTorch's convolution takes channels-first tensors into another layout and back, for which it needs another two tensors
of the size and two to four times the time of the products. In double precision it does not, and is left to itself.
Output and input gradient are compiled products where these serve, which are a tenth to a fifth faster than a library's.
"""

from math import prod

import torch
from torch import Size, Tensor, nn

from tuckprop import native
from tuckprop.layers._geometry import Geometry

# With fewer positions a sample, a library's products are too small to gain (measured on two cores: 7 x 7).
_POSITIONS = 49

# Channels on one side, and pairs of channels, up to which a kernel's weight gradient is faster: by up to three times.
_NARROW, _SMALL = 24, 1 << 13


def serves(x: Tensor, shape: Size, weight: Tensor, geometry: Geometry) -> bool:
    """Say whether `output` and `input_gradient` take these.

    Args:
        x: Input of the layer or gradient of its output, [b, c, s..].
        shape: Shape of the input.
        weight: [o, c, 1..].
        geometry: The layer's geometry.
    """
    return (
        geometry.has_one_tap
        and _enough(_positions(shape, geometry), x)
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and type(x) in {Tensor, nn.Parameter}
        and x.is_contiguous()
        and weight.dtype == x.dtype
        # A weight in channels_last asks for such an output.
        and weight.is_contiguous()
        and not _channels_last(weight)
    )


def serves_weight(x: Tensor, shape: Size, weight: Tensor, geometry: Geometry) -> bool:
    """Say whether `weight_gradient` takes these, in buffers of about the size of input and output gradient."""
    if not geometry.has_one_tap:
        return False
    (outputs, channels), positions = weight.shape[:2], _positions(shape, geometry)
    small = outputs * channels <= (outputs + channels) * positions
    return small and positions >= _POSITIONS and serves(x, shape, weight, geometry)


def _positions(shape: Size, geometry: Geometry) -> int:
    """Return the positions of a sample that the tap meets."""
    if geometry.has_unit_stride:
        return shape[2:].numel()
    return prod(-(-size // stride) for size, stride in zip(shape[2:], geometry.stride, strict=True))


def _met(x: Tensor, geometry: Geometry) -> Tensor:
    """Return the view of `x` [b, c, s..] that the tap meets: all of it without a stride."""
    steps = [slice(None, None, stride) for stride in geometry.stride]
    return x if geometry.has_unit_stride else x[(slice(None), slice(None), *steps)]


def _enough(positions: int, x: Tensor) -> bool:
    """Say whether products of so many positions are fast: few have to fill vectors, for compiled ones."""
    return positions >= _POSITIONS or (positions > 0 and positions % native.LANES == 0 and native.serves(x))


def _channels_last(weight: Tensor) -> bool:
    return weight.dim() > 3 and weight.shape[1] > 1 and weight.stride(-1) != 1


def output(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Return the convolution of `x` [b, c, s..] with `weight` [o, c, 1..] and `bias` [o]: [b, o, s..]."""
    return _products(weight.flatten(1), _met(x, geometry).contiguous(), bias)


def input_gradient(grad: Tensor, weight: Tensor, shape: Size, geometry: Geometry) -> Tensor:
    """Return the gradient of the input, of this shape, from that of the output, [b, o, m..]."""
    products = _products(weight.flatten(1).T, grad)
    if geometry.has_unit_stride:
        return products
    out = grad.new_zeros(shape)
    _met(out, geometry).copy_(products)
    return out


def weight_gradient(x: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Return the gradient of the weight, [o, c, 1..], from input [b, c, s..] and output gradient [b, o, m..]."""
    left, right = grad.flatten(2), _met(x, geometry).flatten(2)
    if _crosses(left, right):
        return native.cross(left, right.contiguous()).view_as(weight)
    return torch.bmm(left, right.transpose(1, 2)).sum(0).view_as(weight)


def _crosses(left: Tensor, right: Tensor) -> bool:
    """Say whether a compiled kernel sums products of matrices [b, o, p] and [b, c, p] faster than a library."""
    outputs, channels, positions = left.shape[1], right.shape[1], left.shape[2]
    narrow = min(outputs, channels) <= _NARROW or outputs * channels <= _SMALL
    return narrow and positions % native.LANES == 0 and left.is_contiguous() and native.serves(left)


def _products(matrix: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `matrix` [n, m] times each sample of `x` [b, m, s..], and a bias [n], in a tensor that is no view."""
    # A view that leaves an autograd function may not change in place.
    samples, channels, *places = x.shape
    y = x.new_empty(samples, matrix.shape[0], *places)
    if native.serves(x) and (bias is None or (native.serves(bias) and bias.is_contiguous())):
        native.product(x, (samples, channels, prod(places)), matrix.T, y, bias=bias)
        return y
    torch.bmm(matrix.expand(samples, -1, -1), x.flatten(2), out=y.flatten(2))
    return y if bias is None else y.add_(bias.view(-1, *[1] * len(places)))
