"""RMSNorm.

Index legend: l.. leading axes, f.. normalised axes, n = prod f.. ; r = 1 / sqrt(mean_f A^2 + eps) of each [l..], w
weight, A^ = A r. With an output gradient G:
    dweight = sum_l G A^        dA = r (w G - A^ mean_f(w G A^))
r is exact; A^ is kept in the codec's form A'. With E = A' - A^ the error of dweight is `sum_l G E`, and that of dA in a
row is at most `r |w G| |E| (2 + |E| / sqrt(n)) / sqrt(n)`, as |A^| <= sqrt(n) in a row.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuckprop.layers._intercept import InterceptingTwin
from tuckprop.layers._normalised import keep, kept, pack_normalised, saves, work_dtype
from tuckprop.layers._once import first_derivative_only
from tuckprop.layers._twin import Site, Twin, twin_of


class FactoredRMSNorm(torch.autograd.Function):
    """An RMSNorm, by whatever function computes it, that keeps a packed normalised input."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        site: Site,
        shape: list[int],
        eps: float | None,
        plain: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Compute `plain(x)`; keep one statistic a row, and the normalised input in packed form or the input."""
        ctx.axes = list(range(x.dim() - len(shape), x.dim()))
        size = x[(0,) * ctx.axes[0]].numel()
        norm = torch.linalg.vector_norm(x, dim=ctx.axes, keepdim=True, dtype=work_dtype(x))
        margin = torch.finfo(norm.dtype).eps if eps is None else eps
        invrms = norm.square_().div_(size).add_(margin).rsqrt_()
        packed = pack_normalised(site, x, lambda: F.rms_norm(x, shape, None, eps))[0]
        ctx.save_for_backward(weight, invrms, *keep(ctx, x, packed))
        return plain(x)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of input and weight."""
        weight, invrms, *tensors = ctx.saved_tensors
        packed = kept(ctx, tensors)
        # As PyTorch does, in single precision at least.
        grad = grad.to(invrms.dtype)
        normalised = (tensors[0] * invrms) if packed is None else packed.dense().to(invrms.dtype)
        leading = list(range(ctx.axes[0]))
        # One work buffer: first for the products, then for the gradient of the input.
        work = grad * normalised
        grad_weight = (work.sum(leading) if leading else work.clone()) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, *[None] * 4
        share = (work if weight is None else work.mul_(weight)).mean(ctx.axes, keepdim=True)
        grad_x = work.copy_(grad) if weight is None else torch.mul(grad, weight, out=work)
        return grad_x.addcmul_(normalised, share, value=-1).mul_(invrms), grad_weight, *[None] * 4


def rms_norm(
    module: Twin,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """Compute `F.rms_norm`, keeping a packed normalised input; arguments after `module` are that function's."""

    def plain(x: Tensor) -> Tensor:
        return F.rms_norm(x, normalized_shape, weight, eps)

    if not saves(input, weight):
        return plain(input)
    result: Tensor = FactoredRMSNorm.apply(input, weight, module._site, list(normalized_shape), eps, plain)
    return result


class RMSNormTwin(InterceptingTwin):
    """Mixin of every module whose forward calls `F.rms_norm`."""

    functional = staticmethod(F.rms_norm)
    saver = staticmethod(rms_norm)


@twin_of(nn.RMSNorm)
class FactoredRMSNormModule(RMSNormTwin, nn.RMSNorm):
    """`nn.RMSNorm` that keeps a packed normalised input."""
