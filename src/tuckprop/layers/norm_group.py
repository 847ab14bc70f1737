"""GroupNorm.

Index legend: b batch, c channels in g groups, s.. positions; mean and inverse standard deviation r of each [b, g].
The gradients are those of layer norm within a group, with weight and bias a channel; see norm_layer.py for them and
for how the error of the packed normalised input enters.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuckprop.layers._intercept import InterceptingTwin
from tuckprop.layers._normalised import pack_normalised, saves
from tuckprop.layers._once import first_derivative_only
from tuckprop.layers._twin import Site, Twin, twin_of

_aten = torch.ops.aten


def _per_group(values: Tensor, x: Tensor, groups: int) -> Tensor:
    """Return [b, g] values as [b, c, 1..], each repeated for the channels of its group."""
    return values.repeat_interleave(x.shape[1] // groups, 1).view(*x.shape[:2], *[1] * (x.dim() - 2)).to(x.dtype)


class FactoredGroupNorm(torch.autograd.Function):
    """`F.group_norm` that keeps a packed normalised input."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, site: Site, groups: int, eps: float
    ) -> Tensor:
        """Compute `F.group_norm`; keep two statistics a group, and the normalised input in packed form or the input."""
        batch, channels = x.shape[:2]
        positions = x[0, 0].numel()
        y, mean, invstd = _aten.native_group_norm(x.contiguous(), weight, bias, batch, channels, positions, groups, eps)
        ctx.groups, ctx.packed = groups, None
        tensors: tuple[Tensor, ...] = ()
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            packed = pack_normalised(
                site, x, lambda: (x - _per_group(mean, x, groups)).mul_(_per_group(invstd, x, groups))
            )
            if packed is not None:
                ctx.packed = (type(packed), packed.meta)
            tensors = (x,) if packed is None else packed.tensors()
        ctx.save_for_backward(weight, mean, invstd, *tensors)
        result: Tensor = y
        return result

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of input, weight and bias, by PyTorch's own backward."""
        weight, mean, invstd, *tensors = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        if not tensors:
            return None, None, grad.sum([d for d in range(grad.dim()) if d != 1]), None, None, None
        x, shift, scale = tensors[0], mean, invstd
        if ctx.packed is not None:
            kind, meta = ctx.packed
            x, shift, scale = kind.rebuild(tensors, meta).dense(), torch.zeros_like(mean), torch.ones_like(invstd)
        batch, channels = x.shape[:2]
        grad_x, grad_weight, grad_bias = _aten.native_group_norm_backward(
            grad.contiguous(),
            x.contiguous(),
            shift,
            scale,
            weight,
            batch,
            channels,
            x[0, 0].numel(),
            ctx.groups,
            [needs_x, needs_weight, needs_bias],
        )
        if ctx.packed is not None and needs_x:
            grad_x.mul_(_per_group(invstd, grad_x, ctx.groups))
        return (
            grad_x if needs_x else None,
            grad_weight if needs_weight else None,
            grad_bias if needs_bias else None,
            *[None] * 3,
        )


def group_norm(
    module: Twin,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Compute `F.group_norm`, keeping a packed normalised input; arguments after `module` are that function's."""
    if not saves(input, weight, bias) or input.dim() < 2:
        return F.group_norm(input, num_groups, weight, bias, eps)
    if input.device.type == "cuda" and torch.is_autocast_enabled("cuda"):
        input = input.float()  # As autocast does with this function.
    result: Tensor = FactoredGroupNorm.apply(input, weight, bias, module._site, num_groups, eps)
    return result


class GroupNormTwin(InterceptingTwin):
    """Mixin of every module whose forward calls `F.group_norm`."""

    functional = staticmethod(F.group_norm)
    saver = staticmethod(group_norm)


@twin_of(nn.GroupNorm)
class FactoredGroupNormModule(GroupNormTwin, nn.GroupNorm):
    """`nn.GroupNorm` that keeps a packed normalised input."""
