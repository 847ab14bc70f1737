"""GroupNorm.

Index legend: b batch, c channels in g groups, s.. positions; mean and inverse standard deviation r of each [b, g], with
n elements; w weight, A^ the normalised input, kept in the codec's form A'. With an output gradient G:
    dbias[c] = sum_{b, s..} G        dweight[c] = sum_{b, s..} G A^
    dA = r (w G - mean_g(w G) - A^ mean_g(w G A^))
as in a layer norm over the group; see norm_layer.py for how the error of A' enters. The means over a group are sums of
those over one channel of one sample, so that where ranks are low nothing of A' is formed (`_one_factor.py`).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuckprop.codecs import Packed
from tuckprop.layers._intercept import InterceptingTwin
from tuckprop.layers._normalised import Gradients, keep, kept, pack_normalised, saves, work_dtype
from tuckprop.layers._once import first_derivative_only
from tuckprop.layers._one_factor import OneFactor, dense_gradient, one_factor
from tuckprop.layers._operands import Operands
from tuckprop.layers._twin import Site, Twin, twin_of
from tuckprop.linalg.layout import is_dense, memory_order

_aten = torch.ops.aten


def kernel_format(x: Tensor) -> torch.memory_format:
    """Return the memory format in which `F.group_norm` computes: that of `x` on a CPU, contiguous elsewhere."""
    on_cpu = x.device.type == "cpu"
    return torch._prims_common.suggest_memory_format(x) if on_cpu else torch.contiguous_format


class FactoredGroupNorm(torch.autograd.Function):
    """`F.group_norm` that keeps a packed normalised input."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, site: Site, groups: int, eps: float
    ) -> Tensor:
        """Compute `F.group_norm`; keep two statistics a group, and the normalised input in packed form or the input."""
        ctx.groups = groups
        source = x.contiguous(memory_format=kernel_format(x))
        tensors: tuple[Tensor, ...] = ()
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            packed = pack_normalised(site, x, lambda: _run(source, None, None, groups, eps)[0])[0]
            tensors = keep(ctx, x, packed)
        y, mean, invstd = _run(source, weight, bias, groups, eps)
        ctx.save_for_backward(weight, mean, invstd, *tensors)
        return y

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of input, weight and bias."""
        weight, mean, invstd, *tensors = ctx.saved_tensors
        mask = list(ctx.needs_input_grad[:3])
        gradients: Gradients
        if not tensors:
            gradients = [None, None, grad.sum([axis for axis in range(grad.dim()) if axis != 1])]
        elif (packed := kept(ctx, tensors)) is None:
            gradients = native_backward(grad, tensors[0], weight, mean, invstd, ctx.groups, mask)
        else:
            gradients = packed_backward(packed, grad, ctx.owns_gradient, weight, invstd, ctx.groups, mask)
        return *gradients, *[None] * 3


def _run(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output, and mean and inverse standard deviation [b, g]."""
    batch, channels = x.shape[:2]
    result: tuple[Tensor, Tensor, Tensor] = _aten.native_group_norm(
        x, weight, bias, batch, channels, x[0, 0].numel(), groups, eps
    )
    return result


def native_backward(
    grad: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, invstd: Tensor, groups: int, mask: list[bool]
) -> Gradients:
    """Run PyTorch's own backward, in the memory format in which it runs."""
    layout = kernel_format(x)
    x, grad = x.contiguous(memory_format=layout), grad.contiguous(memory_format=layout)
    # The kernels want all parameters in one dtype: on a CPU single precision is one, elsewhere that of the input.
    dtype = mean.dtype if x.device.type == "cpu" else x.dtype
    batch, channels = x.shape[:2]
    gradients = _aten.native_group_norm_backward(
        grad,
        x,
        mean.to(dtype),
        invstd.to(dtype),
        None if weight is None else weight.to(dtype),
        batch,
        channels,
        x[0, 0].numel(),
        groups,
        mask,
    )
    return [gradient if wanted else None for gradient, wanted in zip(gradients, mask, strict=True)]


def packed_backward(
    packed: Packed, grad: Tensor, owned: bool, weight: Tensor | None, invstd: Tensor, groups: int, mask: list[bool]
) -> Gradients:
    """Return the gradients from A'.

    Args:
        packed: A', shape [b, c, s..].
        grad: G, the same shape.
        owned: Whether G may be overwritten.
        weight: w [c].
        invstd: r [b, g].
        groups: g.
        mask: Whether the gradients of input, weight and bias are wanted.

    Returns:
        The gradients, None where not wanted.
    """
    owned = owned or not is_dense(grad)
    grad = dense_gradient(grad)
    operands = Operands.of(packed)
    form = one_factor(operands, grad, (0, 1))
    if form is not None:
        return _gradients_from_sums(form, grad, owned, weight, invstd.to(work_dtype(invstd)), mask)
    x = operands.dense(memory_order(grad)).to(grad.dtype)
    # A' as an input of mean 0 and deviation 1; the true deviation is multiplied in afterwards.
    mean, ones = torch.zeros_like(invstd), torch.ones_like(invstd)
    gradients = native_backward(grad, x, weight, mean, ones, groups, mask)
    if gradients[0] is not None:
        spread = _by_channel(invstd, grad.shape[1]).to(grad.dtype)
        gradients[0].mul_(spread.view(*spread.shape, *[1] * (grad.dim() - 2)))
    return gradients


def _by_channel(values: Tensor, channels: int) -> Tensor:
    """Return values [b, g] as [b, c], each repeated for the channels of its group."""
    return values.repeat_interleave(channels // values.shape[1], 1)


def _gradients_from_sums(
    form: OneFactor, grad: Tensor, owned: bool, weight: Tensor | None, invstd: Tensor, mask: list[bool]
) -> Gradients:
    groups, channels = invstd.shape[1], grad.shape[1]
    sums, grad_sums = form.sums(grad)
    grad_x = None
    if mask[0]:

        def minus_mean(of: Tensor) -> Tensor:
            weighted = of if weight is None else of * weight
            total = weighted.unflatten(1, (groups, -1)).sum(2)
            return _by_channel(-invstd * total / (grad[0].numel() // groups), channels)

        scale = _by_channel(invstd, channels)
        grad_x = form.combine(
            grad, owned, scale if weight is None else scale * weight, minus_mean(sums), minus_mean(grad_sums)
        )
    return [grad_x, sums.sum(0) if mask[1] else None, grad_sums.sum(0) if mask[2] else None]


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
