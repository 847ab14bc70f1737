"""Gradients of depthwise convolutions on a GPU, channels first: kernels of our own where PyTorch's are slow.

Measured on one GPU, PyTorch's kernels take two to four times as long as it takes to read and write what they work on.
The output is left to it, and stays equal to the plain layer's bit for bit.
"""

from math import prod

from torch import Size, Tensor

from tuckprop import gpu
from tuckprop.layers._depthwise import works_on_planes
from tuckprop.layers._geometry import Geometry


def serves(grad: Tensor, shape: Size, weight: Tensor, geometry: Geometry) -> bool:
    """Say whether `input_gradient` takes these.

    Args:
        grad: Gradient of the output, [b, c, m, n].
        shape: Shape of the input.
        weight: [c, 1, k, l].
        geometry: The layer's geometry.
    """
    return (
        grad.is_cuda
        and works_on_planes(shape, weight, geometry)
        and grad.is_contiguous()
        and gpu.serves(grad)
        and prod(shape) < gpu.MOST_ELEMENTS
        and prod(geometry.kernel) <= gpu.MOST_TAPS
    )


# Says the same of `weight_gradient`.
serves_weight = serves


def input_gradient(grad: Tensor, weight: Tensor, shape: Size, geometry: Geometry) -> Tensor:
    """Return the gradient of an input of this shape from that of the output, [b, c, m, n]."""
    from tuckprop.gpu import depthwise

    out = grad.new_empty(shape)
    depthwise.input_gradient(grad, weight.contiguous(), out, geometry.window)
    return out


def weight_gradient(x: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Return the gradient of the weight [c, 1, k, l] from input [b, c, h, v] and output gradient [b, c, m, n]."""
    from tuckprop.gpu import depthwise

    return depthwise.weight_gradient(x.contiguous(), grad, geometry.window).to(weight.dtype)
