"""InstanceNorm1d, InstanceNorm2d, InstanceNorm3d.

Index legend: b batch, c channels, s.. positions; mean and inverse standard deviation of each [b, c].
With statistics of the input this is a group norm with one channel a group: see norm_group.py for the gradients, and
norm_layer.py for how the error of the packed normalised input enters. With running statistics it is a batch norm in
eval mode, see norm_batch.py.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuckprop.layers._intercept import InterceptingTwin
from tuckprop.layers._normalised import Gradients, keep, kept, pack_normalised, saves, work_dtype
from tuckprop.layers._once import first_derivative_only
from tuckprop.layers._twin import Site, Twin, twin_of
from tuckprop.layers.norm_batch import batch_norm, normalised
from tuckprop.layers.norm_group import native_backward, packed_backward

_aten = torch.ops.aten


class FactoredInstanceNorm(torch.autograd.Function):
    """`F.instance_norm` with statistics of the input, that keeps a packed normalised input."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        site: Site,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        """Compute `F.instance_norm`; keep two statistics a channel, and the normalised input packed or the input."""
        batch, channels = x.shape[:2]
        # As PyTorch does it: a batch norm of one sample with b c channels.
        source = x.contiguous().view(1, batch * channels, *x.shape[2:])
        tensors: tuple[Tensor, ...] = ()
        mean = invstd = None
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            mean, var = statistics(source)
            packed = pack_normalised(site, x, lambda: normalised(source, mean, var, eps).view(x.shape))[0]
            tensors = keep(ctx, x, packed)
            mean, invstd = mean.view(batch, channels), (var + eps).rsqrt().view(batch, channels)
        ctx.save_for_backward(weight, mean, invstd, *tensors)
        return torch.instance_norm(
            x, weight, bias, running_mean, running_var, True, momentum, eps, torch.backends.cudnn.enabled
        )

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
            gradients = native_backward(grad, tensors[0], weight, mean, invstd, grad.shape[1], mask)
        else:
            gradients = packed_backward(packed, grad, ctx.owns_gradient, weight, invstd, grad.shape[1], mask)
        return *gradients, *[None] * 5


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance [c] of `x` [b, c, s..], in at least float32."""
    # Running statistics, which a momentum of 0 leaves alone, set the precision.
    running = torch.zeros(x.shape[1], dtype=work_dtype(x), device=x.device)
    mean, var = _aten.batch_norm_update_stats(x, running, torch.ones_like(running), 0.0)
    return mean, var


def instance_norm(
    module: Twin,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Compute `F.instance_norm`, keeping a packed normalised input; arguments after `module` are that function's."""
    # A single position has no deviation; PyTorch refuses it. With running statistics, half precision is not rounded as
    # in a batch norm.
    refused = input[0, 0].numel() == 1 if use_input_stats else input.dtype.itemsize < 4
    if not saves(input, weight, bias) or input.dim() < 3 or refused:
        return F.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    if not use_input_stats:
        return batch_norm(module, input.contiguous(), running_mean, running_var, weight, bias, False, momentum, eps)
    result: Tensor = FactoredInstanceNorm.apply(
        input, weight, bias, module._site, running_mean, running_var, momentum, eps
    )
    return result


class InstanceNormTwin(InterceptingTwin):
    """Mixin of every module whose forward calls `F.instance_norm`."""

    functional = staticmethod(F.instance_norm)
    saver = staticmethod(instance_norm)


@twin_of(nn.InstanceNorm1d)
class FactoredInstanceNorm1d(InstanceNormTwin, nn.InstanceNorm1d):
    """`nn.InstanceNorm1d` that keeps a packed normalised input."""


@twin_of(nn.InstanceNorm2d)
class FactoredInstanceNorm2d(InstanceNormTwin, nn.InstanceNorm2d):
    """`nn.InstanceNorm2d` that keeps a packed normalised input."""


@twin_of(nn.InstanceNorm3d)
class FactoredInstanceNorm3d(InstanceNormTwin, nn.InstanceNorm3d):
    """`nn.InstanceNorm3d` that keeps a packed normalised input."""
