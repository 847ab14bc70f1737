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

# Elements of a plane from which on the detour costs more than the convolution: where windows lie side by side and have
# at most so many taps, and any (measured on two cores: 14 x 14 and 28 x 28).
_PLANE, _LARGE_PLANE = 196, 784
_FEW_TAPS = 25

# With more taps than these, PyTorch's weight gradient is worse on planes of any size.
_TAPS = 9


def serves(x: Tensor, shape: Size, weight: Tensor, geometry: Geometry) -> bool:
    """Say whether `output` and `input_gradient` take these.

    Args:
        x: Input of the layer or gradient of its output, [b, c, h, v].
        shape: Shape of the input.
        weight: [c, 1, k, l].
        geometry: The layer's geometry.
    """
    return works_on_planes(shape, weight, geometry) and _worth(shape, geometry) and _possible(x, weight, geometry)


def serves_weight(x: Tensor, shape: Size, weight: Tensor, geometry: Geometry) -> bool:
    """Say whether `weight_gradient` takes these; arguments as for `serves`."""
    if not works_on_planes(shape, weight, geometry):
        return False
    worth = _worth(shape, geometry) or prod(geometry.kernel) > _TAPS
    return worth and _possible(x, weight, geometry)


def works_on_planes(shape: Size, weight: Tensor, geometry: Geometry) -> bool:
    """Say whether this is a depthwise convolution over planes, one kernel a channel, that kernels of our own know."""
    one_each = geometry.groups == shape[1] == weight.shape[0]
    return one_each and len(geometry.kernel) == 2 and not geometry.transposed and not geometry.pads_explicitly


def _worth(shape: Size, geometry: Geometry) -> bool:
    """Say whether planes are large enough."""
    dense = prod(geometry.stride) == 1 and prod(geometry.kernel) <= _FEW_TAPS
    return prod(shape[2:]) >= (_PLANE if dense else _LARGE_PLANE)


def _possible(x: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    return (
        prod(geometry.kernel) <= native.MOST_TAPS
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
