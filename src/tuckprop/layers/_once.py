"""Backward passes for first derivatives only: asking for a second one fails loudly, and is never silently wrong.

`torch.autograd.function.once_differentiable` lets a gradient that depends on the weight alone pass as a constant.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from tuckprop.errors import UnsupportedError
from tuckprop.layers._owned import count_references, is_owned

Gradients = tuple[Tensor | None, ...]


class _Refuse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        raise UnsupportedError(
            "double backward: expected first derivatives only, got a request to differentiate the gradient of a "
            "converted layer; call tuckprop.revert(model) for second derivatives"
        )


def first_derivative_only(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """Return `backward`, made to raise UnsupportedError as soon as its gradients are differentiated themselves.

    It finds in `ctx.owns_gradient` whether it may overwrite the (first) gradient that it gets.
    """

    @wraps(backward)
    def once(ctx: Any, *grads: Tensor) -> Gradients:
        if not torch.is_grad_enabled():
            ctx.owns_gradient = is_owned(count_references(grads))
            return backward(ctx, *grads)
        # The caller asked for create_graph=True.
        ctx.owns_gradient = False
        with torch.no_grad():
            gradients = backward(ctx, *grads)
        return tuple(None if g is None else _Refuse.apply(g.detach().requires_grad_()) for g in gradients)

    return once
