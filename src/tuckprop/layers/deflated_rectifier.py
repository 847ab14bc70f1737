"""ReLU, ReLU6 and Hardtanh under `DeflatedHOSVD`: their bits are deflated, and the gradient stays exact."""

from typing import Any

import torch
from torch import Tensor, nn

from tuckprop.codecs.deflated_hosvd import DeflatedHOSVD
from tuckprop.layers import rectifier
from tuckprop.layers._once import first_derivative_only
from tuckprop.layers._pointwise import worth_saving, worth_saving_in_place
from tuckprop.layers._twin import Twin, twin_of
from tuckprop.layers.rectifier import Rectifier
from tuckprop.linalg.bits import slabs
from tuckprop.linalg.deflate import deflate_flags, inflate_flags
from tuckprop.linalg.layout import flat, is_dense


class DeflatedGradient(torch.autograd.Function):
    """A rectifier whose slope is 0 or 1, that keeps where it is 0, deflated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rule: Rectifier, in_place: bool) -> Tensor:
        """Compute the function, into `x` itself if `in_place`; keep the flags."""
        source = x if is_dense(x) else x.clone()
        y = source if in_place or source is not x else torch.empty_like(x)
        off = torch.empty_strided(source.shape, source.stride(), dtype=torch.bool, device=x.device)
        elements, flags = flat(source), flat(off)
        one, work = x.new_ones(1), x.new_empty(0)
        for part in slabs(x.numel(), x.device):
            taken = elements[part]
            work = work if len(work) == len(taken) else torch.empty_like(taken)
            rule.slope(one.expand(len(taken)), taken, work)
            torch.eq(work, 0, out=flags[part])
        ctx.shape = x.shape
        ctx.save_for_backward(deflate_flags(off))
        rule.run(elements, flat(y))
        if not in_place:
            return y
        if source is not x:
            x.copy_(source)
        ctx.mark_dirty(x)
        return x

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the exact gradient of the input."""
        (data,) = ctx.saved_tensors
        off = inflate_flags(data, ctx.shape)
        return (grad.masked_fill_ if ctx.owns_gradient else grad.masked_fill)(off, 0), None, None


def rectify(x: Tensor, rule: Rectifier, inplace: bool) -> Tensor | None:
    """Apply a rectifier that keeps deflated flags; None where that is not possible, or there is nothing to keep."""
    if x.device.type != "cpu" or not (worth_saving_in_place(x) if inplace else worth_saving(x)):
        return None
    result: Tensor = DeflatedGradient.apply(x, rule, inplace)
    return result


@twin_of(nn.ReLU, DeflatedHOSVD)
class DeflatedReLU(Twin, nn.ReLU):
    """`nn.ReLU` that keeps deflated bits."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute the plain function, bit for bit."""
        kept = rectify(input, rectifier.RELU, self.inplace)
        return rectifier.relu(input, self.inplace) if kept is None else kept


class DeflatedClamp(Twin):
    """Mixin of modules that clamp between two bounds."""

    min_val: float
    max_val: float
    inplace: bool

    def forward(self, input: Tensor) -> Tensor:
        """Compute the plain function, bit for bit."""
        rule = rectifier.clamp_rule(self.min_val, self.max_val)
        kept = rectify(input, rule, self.inplace) if self.min_val <= self.max_val else None
        return rectifier.hardtanh(input, self.min_val, self.max_val, self.inplace) if kept is None else kept


@twin_of(nn.Hardtanh, DeflatedHOSVD)
class DeflatedHardtanh(DeflatedClamp, nn.Hardtanh):
    """`nn.Hardtanh` that keeps deflated bits."""


@twin_of(nn.ReLU6, DeflatedHOSVD)
class DeflatedReLU6(DeflatedClamp, nn.ReLU6):
    """`nn.ReLU6` that keeps deflated bits."""
