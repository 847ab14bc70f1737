"""Depthwise convolutions on a CPU, channels first: kernels of our own where PyTorch's are slow.

PyTorch's take such tensors into another layout and back, at two more tensors of the size and several times the time of
the convolution. Small planes gain nothing and stay with it; so does channels_last, which needs no such detour. Only its
weight gradient is worse still: from 5 x 5 taps on it takes ten times as long as these on planes of any size.
"""

from math import prod

import torch
from torch import Size, Tensor, nn

from tuckprop import native
from tuckprop.layers._geometry import Geometry

# Elements of a plane from which on the detour costs more than the convolution (measured on two cores: 28 x 28).
_PLANE = 784
_TAPS = 9


def serves(x: Tensor, shape: Size, weight: Tensor, geometry: Geometry) -> bool:
    """Say whether `output` and `input_gradient` take these.

    Args:
        x: Input of the layer or gradient of its output, [b, c, h, v].
        shape: Shape of the input.
        weight: [c, 1, k, l].
        geometry: The layer's geometry.
    """
    return prod(shape[2:]) >= _PLANE and _possible(x, shape, weight, geometry)


def serves_weight(x: Tensor, shape: Size, weight: Tensor, geometry: Geometry) -> bool:
    """Say whether `weight_gradient` takes these; arguments as for `serves`."""
    worth = prod(shape[2:]) >= _PLANE or prod(geometry.kernel) > _TAPS
    return worth and _possible(x, shape, weight, geometry)


def works_on_planes(shape: Size, weight: Tensor, geometry: Geometry) -> bool:
    """Say whether this is a depthwise convolution over planes, one kernel a channel, that kernels of our own know."""
    one_each = geometry.groups == shape[1] == weight.shape[0]
    return len(geometry.kernel) == 2 and one_each and not geometry.transposed and not geometry.pads_explicitly


def _possible(x: Tensor, shape: Size, weight: Tensor, geometry: Geometry) -> bool:
    return (
        works_on_planes(shape, weight, geometry)
        and prod(geometry.kernel) <= native.MOST_TAPS
        and type(x) in {Tensor, nn.Parameter}
        and x.is_contiguous()
        and native.serves(x)
        and weight.dtype == x.dtype
        and (weight.stride(1) != 1 or prod(geometry.kernel) == 1)  # A channels_last weight asks for such an output.
        and not torch.compiler.is_compiling()
    )


def output(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Return the convolution of `x` [b, c, h, v] with `weight` [c, 1, k, l] and `bias` [c]: [b, c, m, n]."""
    sizes = [
        (size + sum(pair) - dilation * (kernel - 1) - 1) // stride + 1
        for size, pair, dilation, kernel, stride in zip(
            x.shape[2:], geometry.padding, geometry.dilation, geometry.kernel, geometry.stride, strict=True
        )
    ]
    y = x.new_empty(*x.shape[:2], *sizes)
    native.depthwise(x, weight.contiguous(), bias, y, geometry.window)
    return y


def input_gradient(grad: Tensor, weight: Tensor, shape: Size, geometry: Geometry) -> Tensor:
    """Return the gradient of an input of this shape from that of the output, [b, c, m, n]."""
    out = grad.new_empty(shape)
    native.depthwise_input(grad, weight.contiguous(), out, geometry.window)
    return out


def weight_gradient(x: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Return the gradient of the weight [c, 1, k, l] from input [b, c, h, v] and output gradient [b, c, m, n]."""
    out = torch.empty_like(weight, memory_format=torch.contiguous_format)
    native.depthwise_weight(x, grad.contiguous(), out, geometry.window)
    return out
