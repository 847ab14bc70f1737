"""BatchNorm1d, BatchNorm2d, BatchNorm3d.

Index legend: b batch, c channels, s.. positions, n = b s.. samples a channel; m mean, r inverse standard deviation,
w weight, A^ = (A - m) r. With an output gradient G:
    dbias[c] = sum G        dweight[c] = sum G A^
    training statistics     dA = w r (G - dbias / n - A^ dweight / n)
    running statistics      dA = w r G
Statistics, bias gradient and, with running statistics, the input gradient are exact. A^ is kept in the codec's form A'.
With E = A' - A^ the error of dweight is `sum G E`, at most |G_c| |E_c| in a channel, and that of dA with training
statistics is `w r (A^ sum G E + E dweight') / n`: A^ has norm sqrt(n) in a channel, so that it is at most
`|w| r |G_c| |E_c| (1 / sqrt(n)) (2 + |E_c| / sqrt(n))`, where |E| <= sqrt(d (1 - epsilon)) |A^| for HOSVD.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuckprop.codecs import Packed
from tuckprop.layers._intercept import InterceptingTwin
from tuckprop.layers._normalised import pack_normalised, saves
from tuckprop.layers._once import first_derivative_only
from tuckprop.layers._twin import Site, Twin, twin_of
from tuckprop.linalg.modes import mode_product

_aten = torch.ops.aten


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (like.dim() - 2))


class FactoredBatchNorm(torch.autograd.Function):
    """`F.batch_norm` that keeps a packed normalised input."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        site: Site,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        training: bool,
        momentum: float,
        eps: float,
    ) -> Tensor:
        """Compute `F.batch_norm`; keep statistics a channel, and of the input what the gradients need."""
        ctx.training, ctx.eps, ctx.packed = training, eps, None
        cudnn = torch.backends.cudnn.enabled
        y, mean, invstd, *_ = torch._batch_norm_impl_index(
            x, weight, bias, running_mean, running_var, training, momentum, eps, cudnn
        )
        if not training:
            assert running_mean is not None
            assert running_var is not None
            # Of their own: the buffers change in place with the next batch in train mode.
            mean, invstd = running_mean.clone(), (running_var + eps).rsqrt()
        tensors: tuple[Tensor, ...] = ()
        if ctx.needs_input_grad[1] or (training and ctx.needs_input_grad[0]):
            packed = pack_normalised(site, x, lambda: _normalise(x, mean, invstd))
            if packed is not None:
                ctx.packed = (type(packed), packed.meta)
            tensors = (x,) if packed is None else packed.tensors()
        ctx.save_for_backward(weight, mean, invstd, *tensors)
        result: Tensor = y
        return result

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of input, weight and bias."""
        weight, mean, invstd, *tensors = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        if ctx.training and (needs_x or needs_weight):
            gradients = _training_backward(ctx, grad, weight, mean, invstd, tensors)
            return *gradients, *[None] * 6
        grad_x = grad_weight = None
        if needs_x:
            scale = invstd if weight is None else weight * invstd
            grad_x = grad * _per_channel(scale, grad).to(grad.dtype)
        if needs_weight:
            if ctx.packed is None:
                grad_weight = _kept_inner_product(grad, tensors[0], mean, invstd)
            else:
                kind, meta = ctx.packed
                grad_weight = inner_product_by_channel(kind.rebuild(tensors, meta), grad)
            grad_weight = grad_weight.to(weight.dtype)
        sums = grad.sum([d for d in range(grad.dim()) if d != 1]).to(mean.dtype) if needs_bias else None
        return grad_x, grad_weight, sums, *[None] * 6


def _normalise(x: Tensor, mean: Tensor, invstd: Tensor) -> Tensor:
    shift, scale = _per_channel(mean, x).to(x.dtype), _per_channel(invstd, x).to(x.dtype)
    return (x - shift).mul_(scale)


def _training_backward(
    ctx: Any, grad: Tensor, weight: Tensor | None, mean: Tensor, invstd: Tensor, tensors: list[Tensor]
) -> list[Tensor | None]:
    """Run PyTorch's own backward: on the input itself, or on the kept A' as an input of mean 0 and deviation 1."""
    x, scale = tensors[0], weight
    if ctx.packed is not None:
        kind, meta = ctx.packed
        x = kind.rebuild(tensors, meta).dense()
        scale = invstd if weight is None else weight * invstd
        mean, invstd = torch.zeros_like(mean), torch.ones_like(invstd)
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    mask = [needs_x, needs_weight, needs_bias]
    grad_x, grad_weight, grad_bias = _aten.native_batch_norm_backward(
        grad, x, scale, None, None, mean, invstd, True, ctx.eps, mask
    )
    return [grad_x if needs_x else None, grad_weight if needs_weight else None, grad_bias if needs_bias else None]


def _kept_inner_product(grad: Tensor, x: Tensor, mean: Tensor, invstd: Tensor) -> Tensor:
    axes = [d for d in range(grad.dim()) if d != 1]
    centred = (grad * x).sum(axes) - mean * grad.sum(axes)
    return centred * invstd


def inner_product_by_channel(packed: Packed, grad: Tensor) -> Tensor:
    """Return `sum_{b, s..} G[b, c, s..] A'[b, c, s..]` from the factors, without forming A'.

    Args:
        packed: A', shape [b, c, s..].
        grad: G, the same shape.

    Returns:
        Shape [c].
    """
    core, factors = packed.partial([axis for axis in range(grad.dim()) if axis != 1])
    for axis in sorted(factors, key=lambda a: factors[a].shape[1] / factors[a].shape[0]):
        grad = mode_product(grad, factors[axis], axis)
    return (grad * core).sum([d for d in range(grad.dim()) if d != 1])


def batch_norm(
    module: Twin,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Compute `F.batch_norm`, keeping a packed normalised input; arguments after `module` are that function's."""
    if not saves(input, weight, bias) or input.dim() < 2 or (training and input.numel() == input.shape[1]):
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    result: Tensor = FactoredBatchNorm.apply(
        input, weight, bias, module._site, running_mean, running_var, training, momentum, eps
    )
    return result


class BatchNormTwin(InterceptingTwin):
    """Mixin of every module whose forward calls `F.batch_norm`."""

    functional = staticmethod(F.batch_norm)
    saver = staticmethod(batch_norm)


@twin_of(nn.BatchNorm1d)
class FactoredBatchNorm1d(BatchNormTwin, nn.BatchNorm1d):
    """`nn.BatchNorm1d` that keeps a packed normalised input."""


@twin_of(nn.BatchNorm2d)
class FactoredBatchNorm2d(BatchNormTwin, nn.BatchNorm2d):
    """`nn.BatchNorm2d` that keeps a packed normalised input."""


@twin_of(nn.BatchNorm3d)
class FactoredBatchNorm3d(BatchNormTwin, nn.BatchNorm3d):
    """`nn.BatchNorm3d` that keeps a packed normalised input."""
