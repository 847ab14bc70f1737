"""Dropout and AlphaDropout: one bit an element says what was kept; the gradient is exact.

The mask is drawn as PyTorch draws it, by the same call on a tensor of the same shape and type, so that one seed gives
the plain layer's mask. The tensor in which it is drawn becomes the output: no third tensor is held.
Channel dropout (Dropout1d, 2d, 3d, FeatureAlphaDropout) keeps one number a channel in PyTorch already.
"""

from math import sqrt
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuckprop.layers._once import first_derivative_only
from tuckprop.layers._pointwise import Order, worth_saving, worth_saving_in_place
from tuckprop.layers._twin import Twin, twin_of
from tuckprop.linalg.bits import gates, pack_flags
from tuckprop.linalg.layout import flat, is_dense

_aten = torch.ops.aten

# Negative of SELU's limit on the left, to which AlphaDropout sets what it drops; PyTorch's digits.
_ALPHA = 1.7580993408473766


class Rule(NamedTuple):
    """What a mask does: `y = x * scale + 0` where it keeps, `y = x * 0 + floor` where it drops, then `+ shift`.

    Attributes:
        p: Chance that an element is dropped.
        alpha: Whether dropped elements go to SELU's limit, with scale and shift that keep mean and variance.
    """

    p: float
    alpha: bool

    def scale(self, dtype: torch.dtype) -> float:
        """Return the factor of what is kept, rounded as PyTorch does, in whose mask it is a number of type `dtype`."""
        one = torch.ones((), dtype=dtype, device="cpu")
        return float(one.mul_(self._spread()) if self.alpha else one.div_(1 - self.p))

    def _spread(self) -> float:
        return 1.0 / sqrt((_ALPHA * _ALPHA * self.p + 1) * (1 - self.p))

    def apply(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the output, in the memory of `mask`, whose values are 0 and 1; operation by operation as PyTorch."""
        if not self.alpha:
            return mask.div_(1 - self.p).mul_(x)
        spread = self._spread()
        floor = mask.add(-1).mul_(_ALPHA * spread).add_(_ALPHA * spread * self.p)
        return mask.mul_(spread).mul_(x).add_(floor)


class MaskedDropout(torch.autograd.Function):
    """Dropout that keeps one bit an element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rule: Rule, in_place: bool) -> Tensor:
        """Drop elements, of `x` itself if `in_place`; keep the mask."""
        mask = torch.empty_like(x).bernoulli_(1 - rule.p)
        ctx.rule, ctx.order = rule, Order.of(mask)
        ctx.save_for_backward(pack_flags(flat(mask)))
        if not in_place:
            return rule.apply(x, mask)
        x.copy_(rule.apply(x, mask))
        ctx.mark_dirty(x)
        return x

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the exact gradient of the input."""
        (bits,) = ctx.saved_tensors
        return _masked(grad, ctx.owns_gradient, bits, ctx.order, ctx.rule.scale(grad.dtype)), None, None


class FusedDropout(torch.autograd.Function):
    """Dropout by the kernel that PyTorch uses on CUDA, which draws and scales at one go."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        """Drop elements; keep the mask."""
        y, mask = _aten.native_dropout(x, p, True)
        mask = mask if is_dense(mask) else mask.contiguous()
        ctx.scale, ctx.order = 1 / (1 - p), Order.of(mask)
        ctx.save_for_backward(pack_flags(flat(mask)))
        dropped: Tensor = y
        return dropped

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the exact gradient of the input."""
        (bits,) = ctx.saved_tensors
        return _masked(grad, ctx.owns_gradient, bits, ctx.order, ctx.scale), None


def _masked(grad: Tensor, owned: bool, bits: Tensor, order: Order, scale: float) -> Tensor:
    """Return `grad` times `scale` where the bit is set, times 0 elsewhere: NaN stays NaN, as in PyTorch."""
    elements, result = order.arrange(grad, owned)
    written = flat(result)
    for part, gate in gates(bits, grad.numel(), grad.dtype):
        scaled = torch.mul(elements[part], scale, out=written[part])
        _aten.leaky_relu_backward.grad_input(scaled, gate, 0.0, False, grad_input=scaled)
    return result


def _keeps_mask(x: Tensor, p: float, training: bool, inplace: bool) -> bool:
    drops_some = training and 0 < p < 1
    # Other devices draw their masks in ways of their own.
    known = x.device.type in {"cpu", "cuda"}
    return drops_some and known and (worth_saving_in_place(x) if inplace else worth_saving(x))


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Compute `F.dropout`, keeping one bit an element."""
    if not _keeps_mask(input, p, training, inplace):
        return F.dropout(input, p, training, inplace)
    fused = input.is_cuda and not inplace
    result: Tensor = FusedDropout.apply(input, p) if fused else MaskedDropout.apply(input, Rule(p, False), inplace)
    return result


def alpha_dropout(input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False) -> Tensor:
    """Compute `F.alpha_dropout`, keeping one bit an element."""
    if not _keeps_mask(input, p, training, inplace):
        return F.alpha_dropout(input, p, training, inplace)
    result: Tensor = MaskedDropout.apply(input, Rule(p, True), inplace)
    return result


@twin_of(nn.Dropout)
class BitDropout(Twin, nn.Dropout):
    """`nn.Dropout` that keeps one bit an element."""

    def forward(self, input: Tensor) -> Tensor:
        """Drop what the plain layer would."""
        return dropout(input, self.p, self.training, self.inplace)


@twin_of(nn.AlphaDropout)
class BitAlphaDropout(Twin, nn.AlphaDropout):
    """`nn.AlphaDropout` that keeps one bit an element."""

    def forward(self, input: Tensor) -> Tensor:
        """Drop what the plain layer would."""
        return alpha_dropout(input, self.p, self.training)
