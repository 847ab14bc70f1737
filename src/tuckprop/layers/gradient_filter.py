"""Conv2d under Gradient Filter: the method replaces both gradients of the layer, so it has a twin of its own.

Index legend: b batch, c input channels, o output channels, p q patches, u v kernel taps. With patch averages G~ of the
output gradient (Eq. 2), patch sums A~ of the input and the weight summed over taps (Eq. 3, 5):
    dW[o, c, u, v] = sum_{b, p, q} A~[b, c, p, q] G~[b, o, p, q]      the same for all taps
    dA[b, c, .., ..] = sum_o W_sum[o, c] G~[b, o, p, q]               the same within a patch
Source: Yang, Li, Marculescu, CVPR 2023.
"""

from functools import partial
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuckprop.codecs.gradient_filter import GradientFilter, PatchSums
from tuckprop.layers._once import first_derivative_only
from tuckprop.layers._twin import PackEvent, autocast, notify, trains, twin_of
from tuckprop.layers._uncompiled import uncompiled
from tuckprop.layers.conv import FactoredConv2d, PlainConvolution


def patch_averages(grad: Tensor, patch: int) -> Tensor:
    """Return the average of `grad` [b, o, h, w] over each patch: [b, o, ceil(h / patch), ceil(w / patch)] (Eq. 2)."""
    margins = [ceil((ceil(n / patch) * patch - n) / 2) for n in grad.shape[-2:]]
    return F.avg_pool2d(grad, patch, stride=patch, padding=margins, count_include_pad=False)


def input_gradient(averages: Tensor, weight: Tensor, patch: int, dilation: tuple[int, int], depthwise: bool) -> Tensor:
    """Return one value of the input's gradient for each patch.

    Args:
        averages: Patch averages of the output gradient, [b, o, p, q].
        weight: [o, c, u, v], or [o, 1, u, v] if depthwise.
        patch: Side of a patch.
        dilation: The layer's; from the patch size on, taps reach other patches and are kept apart, as published.
        depthwise: Whether the layer is.

    Returns:
        Shape [b, c, p, q].
    """
    if dilation[0] > 1 and dilation[0] >= patch:
        reach = dilation[0] // patch
        flipped = weight.flip(2, 3) if depthwise else weight.transpose(0, 1).flip(2, 3)
        pad = [reach * (k // 2) for k in weight.shape[2:]]
        return F.conv2d(averages, flipped, padding=pad, dilation=reach, groups=len(weight) if depthwise else 1)
    taps = weight.sum((2, 3))
    return averages * taps.view(1, -1, 1, 1) if depthwise else F.conv2d(averages, taps.T[..., None, None])


class FilteredConvolution(torch.autograd.Function):
    """A convolution that keeps patch sums of its input."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, module: "FilteredConv2d", plain: PlainConvolution
    ) -> Tensor:
        """Compute the plain convolution; keep the patch sums (Eq. 5) and the weight."""
        y: Tensor = plain(x, weight, bias)
        site, codec = module._site, module._site.codec
        assert isinstance(codec, GradientFilter)
        rows, columns = module.stride
        sums = codec.patch_sums(x, (y.shape[2], y.shape[3]), (rows, columns))
        ctx.patch, ctx.dilation, ctx.depthwise = codec.patch, module.dilation, module.groups > 1
        ctx.has_bias, ctx.meta = bias is not None, sums.meta
        if ctx.needs_input_grad[1]:
            notify(PackEvent(site, x.shape, x.element_size(), sums.paper_count(), sums))
            ctx.save_for_backward(weight, *sums.tensors())
        else:
            ctx.save_for_backward(weight)
        return y

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the filtered gradients of input and weight, and the exact one of the bias."""
        weight, *kept = ctx.saved_tensors
        averages = patch_averages(grad, ctx.patch)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            blocks = input_gradient(averages, weight, ctx.patch, ctx.dilation, ctx.depthwise)
            grad_x = PatchSums.rebuild((blocks,), ctx.meta).spread(blocks)
        if ctx.needs_input_grad[1]:
            sums = kept[0]
            if ctx.depthwise:
                per_tap = (sums * averages).sum((0, 2, 3))[:, None]
            else:
                per_tap = averages.transpose(0, 1).flatten(1) @ sums.transpose(0, 1).flatten(1).T
            grad_weight = per_tap[..., None, None].expand_as(weight).contiguous()
        if ctx.has_bias and ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, 2, 3))
        return grad_x, grad_weight, grad_bias, None, None


@twin_of(nn.Conv2d, GradientFilter)
class FilteredConv2d(FactoredConv2d):
    """`nn.Conv2d` whose gradients are Gradient Filter's."""

    @uncompiled
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        plain: PlainConvolution = partial(nn.Conv2d._conv_forward, self)
        if not trains(self, input, weight, bias):
            return plain(input, weight, bias)
        if input.dim() == 3:
            return self._conv_forward(input[None], weight, bias)[0]
        result: Tensor = FilteredConvolution.apply(*autocast(input, weight, bias), self, plain)
        return result
