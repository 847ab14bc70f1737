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
Where the ranks are low, backward forms no A': both sums and the last term of dA come from its core (`_one_factor.py`).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuckprop import gpu, native
from tuckprop.codecs import Packed
from tuckprop.layers._intercept import InterceptingTwin
from tuckprop.layers._normalised import (
    Gradients,
    keep,
    kept,
    pack_normalised,
    pack_tracked,
    room_for,
    saves,
    work_dtype,
)
from tuckprop.layers._once import first_derivative_only
from tuckprop.layers._one_factor import dense_gradient, one_factor
from tuckprop.layers._operands import Operands
from tuckprop.layers._twin import Site, Twin, twin_of
from tuckprop.linalg.layout import is_dense, memory_order

_aten = torch.ops.aten

# Planes of fewer elements gain nothing from the compiled kernels.
_POSITIONS = 16


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """Return values [c] so that they broadcast with a tensor [b, c, s..] and have its dtype."""
    return _along_channels(values, like).to(like.dtype)


def _along_channels(values: Tensor, like: Tensor) -> Tensor:
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
        ctx.training, ctx.eps = training, eps
        tensors: tuple[Tensor, ...] = ()
        buffer = None
        own: list[Tensor] = []  # Mean, 1 / sqrt(variance + eps) and variance, where a compiled kernel has found them.
        saves_input = ctx.needs_input_grad[1] or (training and ctx.needs_input_grad[0])
        tracked = training and site.tracker is not None
        if saves_input and not tracked:
            running = (None, None) if training else (running_mean, running_var)

            def normalise() -> Tensor:
                if not training or not _served(x, weight, bias, running_mean, running_var):
                    return normalised(x, *running, eps)
                normal = torch.empty_like(x)
                own.extend(native.batch_norm(x, normal, None, None, eps))
                return normal

            packed, buffer = pack_normalised(site, x, normalise)
            tensors = keep(ctx, x, packed)
        if own and buffer is not None:
            mean, spread, var = own
            y = _affine(buffer, weight, bias)
            _update(running_mean, running_var, mean, var, x.numel() // x.shape[1], momentum)
        else:
            y, mean, spread = plain(x, weight, bias, running_mean, running_var, training, momentum, eps, buffer)
        if saves_input and tracked:
            packed = pack_tracked(site, x, _along_channels(mean, x), _along_channels(spread, x), eps)
            tensors = keep(ctx, x, packed)
        if not training:
            assert running_mean is not None
            assert running_var is not None
            # Of their own: the buffers change in place with the next batch in train mode.
            mean, spread = running_mean.clone(), running_var.clone()
        # The spread is 1 / sqrt(variance + eps) of the batch, or the running variance.
        ctx.save_for_backward(weight, mean, spread, *tensors)
        return y

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of input, weight and bias."""
        weight, mean, spread, *tensors = ctx.saved_tensors
        mask = list(ctx.needs_input_grad[:3])
        if not tensors:
            invstd = None if ctx.training else (spread + ctx.eps).rsqrt()
            gradients = _without_input(grad, ctx.owns_gradient, weight, invstd, mean.dtype, mask)
        elif (packed := kept(ctx, tensors)) is None:
            gradients = _from_input(ctx, grad, tensors[0], weight, mean, spread, mask)
        else:
            invstd = spread if ctx.training else (spread + ctx.eps).rsqrt()
            gradients = packed_backward(packed, grad, ctx.owns_gradient, weight, invstd, ctx.training, mask)
        return *gradients, *[None] * 6


def plain(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    buffer: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `F.batch_norm` computes, and mean and inverse standard deviation [c] if these are the batch's own.

    Args:
        x: The input; the other arguments are those of `F.batch_norm`.
        weight: As there.
        bias: As there.
        running_mean: As there.
        running_var: As there.
        training: As there.
        momentum: As there.
        eps: As there.
        buffer: Like the output, to be overwritten with it, or None. Fresh memory would cost more than the norm itself.
    """
    if training and _served(x, weight, bias, running_mean, running_var):
        y = torch.empty_like(x) if buffer is None else buffer
        mean, invstd, var = native.batch_norm(x, y, weight, bias, eps)
        _update(running_mean, running_var, mean, var, x.numel() // x.shape[1], momentum)
        return y, mean, invstd
    arguments = (x, weight, bias, running_mean, running_var, training, momentum, eps)
    if buffer is not None and _overwrites_rightly(x, buffer):
        statistics = buffer.new_empty(0), buffer.new_empty(0)
        _aten.native_batch_norm.out(*arguments, out=buffer, save_mean=statistics[0], save_invstd=statistics[1])
        return buffer, *statistics
    y, mean, invstd, *_ = torch._batch_norm_impl_index(*arguments, torch.backends.cudnn.enabled)
    return y, mean, invstd


def _affine(normal: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return `A^ w + b` in the memory of A^."""
    if weight is not None and bias is not None:
        return torch.addcmul(per_channel(bias, normal), normal, per_channel(weight, normal), out=normal)
    if weight is not None:
        normal.mul_(per_channel(weight, normal))
    return normal if bias is None else normal.add_(per_channel(bias, normal))


def _update(
    running_mean: Tensor | None, running_var: Tensor | None, mean: Tensor, var: Tensor, samples: int, momentum: float
) -> None:
    """Move running statistics towards those of a batch, the variance by the unbiased estimate."""
    if running_mean is not None:
        running_mean.mul_(1 - momentum).add_(mean, alpha=momentum)
    if running_var is not None:
        running_var.mul_(1 - momentum).add_(var, alpha=momentum * samples / (samples - 1))


def _served(x: Tensor, *others: Tensor | None) -> bool:
    """Say whether the compiled kernels take `x` [b, c, s..] and what goes with it: planes, channels first."""
    planes = x.is_contiguous() and x.numel() >= _POSITIONS * x.shape[0] * x.shape[1]
    alike = all(t is None or (t.dtype == x.dtype and t.is_contiguous()) for t in others)
    return planes and alike and native.serves(x)


def _overwrites_rightly(x: Tensor, buffer: Tensor) -> bool:
    """Say whether PyTorch's kernel with `out` computes what the other does: not where it would have to copy `x`."""
    return x.device.type == "cpu" and x.dtype in {torch.float32, torch.float64} and x.stride() == buffer.stride()


def normalised(x: Tensor, mean: Tensor | None, var: Tensor | None, eps: float) -> Tensor:
    """Return A^, from these statistics or from those of `x`."""
    if mean is None and _served(x):
        y = torch.empty_like(x)
        native.batch_norm(x, y, None, None, eps)
        return y
    # Weights in the precision of the statistics keep those in it, where `x` is in half precision.
    channels = torch.ones(x.shape[1], dtype=work_dtype(x) if mean is None else mean.dtype, device=x.device)
    result: Tensor = _aten.native_batch_norm(
        x, channels, torch.zeros_like(channels), mean, var, mean is None, 0.0, eps
    )[0]
    return result


def _without_input(
    grad: Tensor, owned: bool, weight: Tensor | None, invstd: Tensor | None, dtype: torch.dtype, mask: list[bool]
) -> Gradients:
    """Return the gradients that need no input: of the bias and, with running statistics, of the input."""
    grad_x = None
    grad_bias = sum_by_channel(grad, dtype) if mask[2] else None
    if mask[0]:
        assert invstd is not None
        grad_x = _scaled(grad, owned, invstd if weight is None else weight * invstd)
    return [grad_x, None, grad_bias]


def _scaled(grad: Tensor, owned: bool, scale: Tensor) -> Tensor:
    """Return the gradient times a number a channel, in its own memory if owned."""
    factor = per_channel(scale, grad)
    return grad.mul_(factor) if owned and is_dense(grad) else grad * factor


def _from_input(
    ctx: Any, grad: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, spread: Tensor, mask: list[bool]
) -> Gradients:
    """Return the gradients from the input itself."""
    if ctx.training and _served(grad, x, weight):
        return _native_backward(grad, ctx.owns_gradient, x, weight, mean, spread, mask)
    if ctx.training and _gpu_served(grad) and _gpu_served(x):
        return _gpu_backward(grad, ctx.owns_gradient, (x, None, mean, spread), weight, spread, mask)
    statistics = (None, None, mean, spread) if ctx.training else (mean, spread, None, None)
    gradients = _aten.native_batch_norm_backward(grad, x, weight, *statistics, ctx.training, ctx.eps, mask)
    return [gradient if wanted else None for gradient, wanted in zip(gradients, mask, strict=True)]


def packed_backward(
    packed: Packed,
    grad: Tensor,
    owned: bool,
    weight: Tensor | None,
    invstd: Tensor,
    training: bool,
    mask: list[bool],
) -> Gradients:
    """Return the gradients from A'.

    Args:
        packed: A', shape [b, c, s..].
        grad: G, the same shape.
        owned: Whether G may be overwritten.
        weight: w [c].
        invstd: r [c].
        training: Whether the statistics are those of the batch.
        mask: Whether the gradients of input, weight and bias are wanted.

    Returns:
        The gradients, None where not wanted.
    """
    owned = owned or not is_dense(grad)
    grad, invstd = dense_gradient(grad), invstd.to(work_dtype(invstd))
    operands = Operands.of(packed)
    if training and _gpu_served(grad):
        return _gpu_backward(grad, owned, _normalised_form(operands, grad, invstd), weight, invstd, mask)
    scale = invstd if weight is None else weight * invstd
    if 1 in operands.factors and _served(grad, scale) and operands.core.dtype == grad.dtype:
        return _factored_backward(operands, grad, owned, scale, training, mask)
    form = one_factor(operands, grad, (1,))
    if form is None:
        return _rebuilt_backward(operands, grad, owned, scale, training, mask)
    sums, grad_sum = form.sums(grad)
    grad_x = None
    if mask[0] and training:
        samples = grad.numel() // grad.shape[1]
        grad_x = form.combine(grad, owned, scale, -scale * sums / samples, -scale * grad_sum / samples)
    elif mask[0]:
        grad_x = _scaled(grad, owned, scale)
    grad_weight = sums.to(weight.dtype) if weight is not None and mask[1] else None
    return [grad_x, grad_weight, grad_sum.to(invstd.dtype) if mask[2] else None]


def _native_backward(
    grad: Tensor, owned: bool, x: Tensor, weight: Tensor | None, mean: Tensor, invstd: Tensor, mask: list[bool]
) -> Gradients:
    """Run the compiled kernel, for training statistics."""
    out = room_for(grad, owned, mask[0])
    grad_weight, grad_bias = native.batch_norm_backward(grad, x, weight, mean, invstd, out)
    return [out, grad_weight if mask[1] else None, grad_bias if mask[2] else None]


def _factored_backward(
    operands: Operands, grad: Tensor, owned: bool, scale: Tensor, training: bool, mask: list[bool]
) -> Gradients:
    """Run the compiled kernel for A' with a factor of the channels; `scale` is w r."""
    core, factor = operands.multiplied(memory_order(grad), but=1), operands.factors[1].contiguous()
    out = room_for(grad, owned, mask[0])
    products, sums = native.batch_norm_factored(grad, core, factor, scale, out, training)
    return [out, products if mask[1] else None, sums if mask[2] else None]


def _gpu_served(grad: Tensor) -> bool:
    """Say whether the kernels for a GPU take it: channels first or last, without gaps."""
    last = grad.dim() == 4 and grad.is_contiguous(memory_format=torch.channels_last)
    return (grad.is_contiguous() or last) and gpu.serves(grad)


def _normalised_form(operands: Operands, grad: Tensor, invstd: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Return A' as the kernels for a GPU take it: with its factor of the channels, if that is worth it, or formed."""
    from tuckprop.gpu.batch_norm import MOST_RANKS

    factor, order = operands.factors.get(1), memory_order(grad)
    if factor is not None and factor.shape[1] <= min(MOST_RANKS, len(factor) // 2):
        return operands.dense(order, but=1), factor.contiguous(), invstd, invstd
    return operands.dense(order), None, torch.zeros_like(invstd), torch.ones_like(invstd)


def _gpu_backward(
    grad: Tensor,
    owned: bool,
    source: tuple[Tensor, Tensor | None, Tensor, Tensor],
    weight: Tensor | None,
    invstd: Tensor,
    mask: list[bool],
) -> Gradients:
    """Run the kernels for a GPU, for training statistics; `source` is what they call `Normalised`."""
    from tuckprop.gpu import batch_norm as kernels

    out = room_for(grad, owned, mask[0])
    scale = (invstd if weight is None else weight * invstd).float()
    products, sums = kernels.backward(grad, kernels.Normalised(*source), scale, out)
    dtype = invstd.dtype if weight is None else weight.dtype
    return [out, products.to(dtype) if mask[1] else None, sums.to(dtype) if mask[2] else None]


def _rebuilt_backward(
    operands: Operands, grad: Tensor, owned: bool, scale: Tensor, training: bool, mask: list[bool]
) -> Gradients:
    """Return the gradients from A' as an input of mean 0 and deviation 1."""
    x = operands.dense(memory_order(grad)).to(grad.dtype)
    mean, invstd = torch.zeros_like(scale), torch.ones_like(scale)
    if training and _served(grad, x, scale):
        return _native_backward(grad, owned, x, scale, mean, invstd, mask)
    statistics = (None, None, mean, invstd) if training else (mean, invstd, None, None)
    gradients = _aten.native_batch_norm_backward(grad, x, scale, *statistics, training, 0.0, mask)
    return [gradient if wanted else None for gradient, wanted in zip(gradients, mask, strict=True)]


def sum_by_channel(grad: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `sum G` over all axes but the channels, [c]."""
    axes = [axis for axis in range(grad.dim()) if axis != 1]
    return grad.sum(axes, dtype=torch.promote_types(dtype, work_dtype(grad))).to(dtype)


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
