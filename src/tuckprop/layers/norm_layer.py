"""LayerNorm.

Index legend: l.. leading axes, f.. normalised axes, n = prod f.. ; m mean and r inverse standard deviation of each
[l..], w weight, A^ = (A - m) r. With an output gradient G and H = G w:
    dbias = sum_l G        dweight = sum_l G A^        dA = r (H - mean_f H - A^ mean_f(H A^))
Statistics and bias gradient are exact; A^ is kept in the codec's form A'. With E = A' - A^ the error of dweight is
`sum_l G E`, and that of dA in a row is at most `r |H| |E| (2 + |E| / sqrt(n)) / sqrt(n)`, as |A^| <= sqrt(n) in a row.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuckprop import gpu
from tuckprop.layers._intercept import InterceptingTwin
from tuckprop.layers._normalised import keep, kept, pack_normalised, pack_tracked, room_for, saves
from tuckprop.layers._once import first_derivative_only
from tuckprop.layers._twin import Site, Twin, twin_of

_aten = torch.ops.aten


class FactoredLayerNorm(torch.autograd.Function):
    """`F.layer_norm` that keeps a packed normalised input."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, site: Site, shape: list[int], eps: float
    ) -> Tensor:
        """Compute `F.layer_norm`; keep two statistics a row, and the normalised input in packed form or the input."""
        ctx.shape = shape
        tensors: tuple[Tensor, ...] = ()
        saves_input = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        if saves_input and site.tracker is None:
            packed = pack_normalised(site, x, lambda: _aten.native_layer_norm(x, shape, None, None, eps)[0])[0]
            tensors = keep(ctx, x, packed)
        y, mean, invstd = _aten.native_layer_norm(x, shape, weight, bias, eps)
        if saves_input and site.tracker is not None:
            tensors = keep(ctx, x, pack_tracked(site, x, mean, invstd, eps))
        ctx.save_for_backward(weight, bias, mean, invstd, *tensors)
        result: Tensor = y
        return result

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of input, weight and bias, by PyTorch's own backward or a kernel on a GPU."""
        weight, bias, mean, invstd, *tensors = ctx.saved_tensors
        mask = list(ctx.needs_input_grad[:3])
        if not tensors:
            leading = list(range(grad.dim() - len(ctx.shape)))
            return None, None, (grad.sum(leading) if leading else grad).to(bias.dtype), *[None] * 3
        packed, x, shift, scale = kept(ctx, tensors), tensors[0], mean, invstd
        if packed is not None:
            # A' as an input of mean 0 and deviation 1; the true deviation is multiplied in afterwards.
            x, shift, scale = packed.dense(), torch.zeros_like(mean), torch.ones_like(invstd)
        if weight is not None and _gpu_served(grad, x, weight):
            gradients = _gpu_backward(grad, ctx.owns_gradient, x, (shift, scale, invstd), weight, mask)
            return *gradients, *[None] * 3
        gradients = _aten.native_layer_norm_backward(grad, x, ctx.shape, shift, scale, weight, bias, mask)
        if packed is not None and mask[0]:
            gradients[0].mul_(invstd.to(grad.dtype))
        return *(gradient if wanted else None for gradient, wanted in zip(gradients, mask, strict=True)), *[None] * 3


def _gpu_served(grad: Tensor, x: Tensor, weight: Tensor) -> bool:
    """Say whether the kernel for a GPU takes it."""
    from_first_to_last = grad.is_contiguous() and x.is_contiguous() and weight.is_contiguous()
    return from_first_to_last and gpu.serves(grad) and weight.numel() <= gpu.LONGEST_ROW


def _gpu_backward(
    grad: Tensor,
    owned: bool,
    x: Tensor,
    statistics: tuple[Tensor, Tensor, Tensor],
    weight: Tensor,
    mask: list[bool],
) -> tuple[Tensor | None, ...]:
    """Run the kernel for a GPU; `statistics` are mean and scale of each row of `x`, and what scales its gradient."""
    from tuckprop.gpu import layer_norm as kernels

    out = room_for(grad, owned, mask[0])
    rows = (-1, weight.numel())
    mean, scale, deviation = (statistic.reshape(-1).float() for statistic in statistics)
    written = None if out is None else out.view(rows)
    products, sums = kernels.backward(grad.view(rows), x.view(rows), mean, scale, deviation, weight.view(-1), written)
    shaped = (
        part.view(weight.shape).to(weight.dtype) if wanted else None
        for part, wanted in zip((products, sums), mask[1:], strict=True)
    )
    return out, *shaped


def layer_norm(
    module: Twin,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Compute `F.layer_norm`, keeping a packed normalised input; arguments after `module` are that function's."""
    if not saves(input, weight, bias):
        return F.layer_norm(input, normalized_shape, weight, bias, eps)
    if input.device.type == "cuda" and torch.is_autocast_enabled("cuda"):
        input = input.float()  # As autocast does with this function.
    result: Tensor = FactoredLayerNorm.apply(input, weight, bias, module._site, list(normalized_shape), eps)
    return result


class LayerNormTwin(InterceptingTwin):
    """Mixin of every module whose forward calls `F.layer_norm`."""

    functional = staticmethod(F.layer_norm)
    saver = staticmethod(layer_norm)


@twin_of(nn.LayerNorm)
class FactoredLayerNormModule(LayerNormTwin, nn.LayerNorm):
    """`nn.LayerNorm` that keeps a packed normalised input."""
