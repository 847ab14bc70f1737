# mypy: allow-subclassing-any
"""timm's layers that scale channels: LayerScale, and ConvNeXt V2's global response normalisation.

Index legend of the latter: n samples, c channels, s.. height and width; N[n, c] the norm of A[n, :, c] over s..,
T[n] = mean_c N + eps, R = N / T, w weight. With an output gradient G of `A + bias + w R A`:
    dbias = sum_{n, s} G        P[n, c] = sum_s G A        dw = sum_n R P
    dA = G (1 + w R) + A (w P - mean_c(w P R)) / (T N)
N is exact; A is kept in the codec's form.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from timm import layers as timm_layers
from timm.layers.grn import GlobalResponseNorm
from torch import Tensor, nn

from tuckprop.codecs import Packed
from tuckprop.layers._normalised import keep, kept, saves, work_dtype
from tuckprop.layers._once import first_derivative_only
from tuckprop.layers._scale import scale
from tuckprop.layers._twin import Twin, twin_of


class LayerScaleTwin(Twin):
    """Mixin: a factor a channel."""

    gamma: nn.Parameter

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        """Refuse a module that works in place."""
        return "it overwrites its input, which its gradient needs" if getattr(module, "inplace", False) else None


@twin_of(timm_layers.LayerScale)
class FactoredLayerScale(LayerScaleTwin, timm_layers.LayerScale):
    """timm's `LayerScale` that keeps a packed input."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute the plain layer, bit for bit. Shape [.., channels]."""
        return scale(self, x, self.gamma)


@twin_of(timm_layers.LayerScale2d)
class FactoredLayerScale2d(LayerScaleTwin, timm_layers.LayerScale2d):
    """timm's `LayerScale2d` that keeps a packed input."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute the plain layer, bit for bit. Shape [batch, channels, height, width]."""
        return scale(self, x, self.gamma.view(1, -1, 1, 1))


class Layout(NamedTuple):
    """Where a response normalisation finds what.

    Attributes:
        spatial: Axes of height and width.
        channels: Axis of the channels.
        shape: Shape in which weight and bias broadcast with the input.
        eps: Added to the mean of the norms.
    """

    spatial: tuple[int, int]
    channels: int
    shape: tuple[int, ...]
    eps: float


class FactoredResponse(torch.autograd.Function):
    """Global response normalisation that keeps a packed input and one number a channel."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        packed: Packed,
        layout: Layout,
        plain: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Compute `plain(x)`; keep `packed` and the norm of each channel."""
        norms = torch.linalg.vector_norm(x, dim=layout.spatial, keepdim=True, dtype=work_dtype(x))
        ctx.layout = layout
        ctx.save_for_backward(weight, norms, *keep(ctx, x, packed))
        return plain(x)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of input, weight and bias."""
        weight, norms, *tensors = ctx.saved_tensors
        spatial, channels, shape, eps = ctx.layout
        packed = kept(ctx, tensors)
        assert packed is not None
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_bias = grad.sum((0, *spatial)) if needs_bias else None
        if not (needs_x or needs_weight):
            return None, None, grad_bias, None, None, None
        x = packed.dense()
        total = norms.mean(channels, keepdim=True).add_(eps)
        response = norms / total
        products = (grad * x).sum(spatial, keepdim=True, dtype=norms.dtype)
        grad_weight = (response * products).sum((0, *spatial)) if needs_weight else None
        if not needs_x:
            return None, grad_weight, grad_bias, None, None, None
        weight = weight.view(shape).to(norms.dtype)
        towards = products.mul_(weight)
        share = (towards * response).mean(channels, keepdim=True)
        # A channel of zeros has norm 0, and PyTorch's gradient of the norm is 0 there.
        slope = ((towards - share) / (total * norms)).masked_fill_(norms == 0, 0)
        gain = (1 + weight * response).to(grad.dtype)
        return torch.addcmul(grad * gain, x, slope.to(x.dtype)), grad_weight, grad_bias, None, None, None


@twin_of(GlobalResponseNorm)
class FactoredGlobalResponseNorm(Twin, GlobalResponseNorm):
    """timm's `GlobalResponseNorm` that keeps a packed input, where it keeps the input and another of its size."""

    weight: nn.Parameter
    bias: nn.Parameter
    spatial_dim: tuple[int, int]
    channel_dim: int
    wb_shape: tuple[int, ...]
    eps: float

    def forward(self, x: Tensor) -> Tensor:
        """Compute the plain layer, bit for bit."""
        if not saves(x, self.weight, self.bias):
            return self._plain(x)
        layout = Layout(self.spatial_dim, self.channel_dim, self.wb_shape, self.eps)
        result: Tensor = FactoredResponse.apply(x, self.weight, self.bias, self._site.pack(x), layout, self._plain)
        return result

    def _plain(self, x: Tensor) -> Tensor:
        result: Tensor = super().forward(x)
        return result
