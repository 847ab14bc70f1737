"""PyTorch's own gradients of a convolution."""

import torch
from torch import Tensor

from tuckprop.layers._geometry import Geometry


def plain_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, mask: tuple[bool, bool, bool]
) -> tuple[Tensor | None, ...]:
    """Return the gradients of input, weight and bias, in one call.

    Args:
        grad: Gradient of the output, [b, o, m..].
        x: The input, explicitly padded; where its own gradient alone is wanted, its shape and layout alone are read.
        weight: The layer's weight; where its own gradient alone is wanted, likewise.
        geometry: The layer's geometry.
        mask: Which of the three are wanted.

    Returns:
        The gradients, that of the input as it is padded; None where not wanted.
    """
    gradients = torch.ops.aten.convolution_backward(
        grad,
        x,
        weight,
        [grad.shape[1]] if mask[2] else None,
        geometry.stride,
        geometry.implicit,
        geometry.dilation,
        geometry.transposed,
        geometry.output_padding or (0,) * len(geometry.kernel),
        geometry.groups,
        mask,
    )
    return tuple(gradient if wanted else None for gradient, wanted in zip(gradients, mask, strict=True))
