"""A factor a channel: `y = x * gamma`.

Index legend: n.. axes along which gamma is constant. With an output gradient G:
    dgamma = sum_n G A        dA = G gamma
dA is exact; A is kept in the codec's form A', and the error of dgamma is `sum_n G (A' - A)`.
"""

from typing import Any

import torch
from torch import Tensor

from tuckprop.codecs import Packed
from tuckprop.layers._normalised import keep, kept, saves
from tuckprop.layers._once import first_derivative_only
from tuckprop.layers._twin import Twin


class FactoredScale(torch.autograd.Function):
    """`x * gamma` that keeps a packed input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, packed: Packed | None) -> Tensor:
        """Multiply; keep gamma, and `packed` if gamma needs a gradient."""
        tensors = () if packed is None else keep(ctx, x, packed)
        ctx.save_for_backward(gamma, *tensors)
        return x * gamma

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of input and gamma."""
        gamma, *tensors = ctx.saved_tensors
        grad_gamma = None
        if ctx.needs_input_grad[1]:
            packed = kept(ctx, tensors)
            assert packed is not None
            grad_gamma = (grad * packed.dense()).sum_to_size(gamma.shape)
        return grad * gamma if ctx.needs_input_grad[0] else None, grad_gamma, None


def scale(module: Twin, x: Tensor, gamma: Tensor) -> Tensor:
    """Compute `x * gamma`, keeping a packed input.

    Args:
        module: The twin, whose site packs.
        x: Any shape.
        gamma: A shape that broadcasts to that of `x`.

    Returns:
        The product, of the shape of `x`.
    """
    if not saves(x, gamma):
        return x * gamma
    packed = module._site.pack(x) if gamma.requires_grad else None
    result: Tensor = FactoredScale.apply(x, gamma, packed)
    return result
