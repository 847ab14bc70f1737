# mypy: allow-subclassing-any
"""timm's pools that compute their padding, and its blur: the gradient is exact, and needs shapes or positions alone.

timm's `FastAdaptiveAvgPool` is a mean and keeps nothing, nor does `DropPath`, whose mask needs no gradient.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm import layers as timm_layers
from timm.layers.adaptive_avgmax_pool import FastAdaptiveAvgPool
from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame
from torch import Tensor

from tuckprop.layers._intercept import InterceptingTwin
from tuckprop.layers._pointwise import worth_saving
from tuckprop.layers._twin import Twin, nothing_to_gain, twin_of
from tuckprop.layers.average_pool import AveragePool, avg_pool2d
from tuckprop.layers.pool import max_pool2d

nothing_to_gain(timm_layers.DropPath, FastAdaptiveAvgPool)


@twin_of(AvgPool2dSame)
class ShapeAvgPool2dSame(InterceptingTwin, AvgPool2dSame):
    """timm's `AvgPool2dSame` that keeps nothing, where it keeps its padded input."""

    functional = staticmethod(F.avg_pool2d)
    saver = staticmethod(lambda module, *args, **kwargs: avg_pool2d(*args, **kwargs))


@twin_of(MaxPool2dSame)
class PositionMaxPool2dSame(InterceptingTwin, MaxPool2dSame):
    """timm's `MaxPool2dSame` that keeps the position inside the window."""

    functional = staticmethod(F.max_pool2d)
    saver = staticmethod(lambda module, *args, **kwargs: max_pool2d(*args, **kwargs))


@twin_of(timm_layers.BlurPool2d)
class ShapeBlurPool2d(Twin, timm_layers.BlurPool2d):
    """timm's `BlurPool2d` that keeps nothing, where it keeps its input and the padded input."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute the plain layer, bit for bit."""
        plain: Callable[[Tensor], Tensor] = super().forward
        if not worth_saving(x):
            return plain(x)

        def input_gradient(grad: Tensor, stand_in: Tensor) -> Tensor:
            # The layer is linear in x, so that its derivative is the same at any input.
            with torch.enable_grad():
                anywhere = stand_in.zero_().requires_grad_()
                return torch.autograd.grad(plain(anywhere), anywhere, grad)[0]

        result: Tensor = AveragePool.apply(x, plain, input_gradient)
        return result
