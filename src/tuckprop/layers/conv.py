"""Conv1d, Conv2d, Conv3d; their transposes (`conv_transpose.py`) share the autograd function.

Index legend: b batch, c input channels, o output channels, h.. input positions, m.. output positions, k.. kernel taps.
The input gradient comes from the weight alone and is exact. Output and input gradient are computed by PyTorch, but for
layers on a CPU that have one tap, are depthwise, or have 3 x 3 taps at stride 1 (`_one_tap.py`, `_depthwise.py`,
`_three_taps.py`, and `_depthwise_half.py` in half precision), and but for the gradients of depthwise layers on a GPU
(`_depthwise_gpu.py`). The weight gradient is
    dW[o, c, k..] = sum_{b, m..} A[b, c, window(m.., k..)] G[b, o, m..]
and comes from the factors of A by one of three routes, the cheapest by a count of operations and bytes:
    factored  every sum over positions is a product with a windowed spatial factor, A is never formed;
    reduced   spatial factors are multiplied out, batch and channel factors shrink an ordinary weight gradient;
    dense     A is rebuilt.
An ordinary weight gradient is PyTorch's, but for the layers named above.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Size, Tensor, nn
from torch.nn.modules.conv import _ConvNd

from tuckprop.codecs import DensePacked, Packed
from tuckprop.layers import _depthwise, _depthwise_gpu, _depthwise_half, _one_tap, _three_taps
from tuckprop.layers._contraction import weight_gradient
from tuckprop.layers._geometry import Geometry
from tuckprop.layers._once import first_derivative_only
from tuckprop.layers._plain_convolution import plain_gradients
from tuckprop.layers._twin import Twin, autocast, trains, twin_of
from tuckprop.layers._uncompiled import uncompiled
from tuckprop.linalg.layout import memory_format


class GradientPath(Protocol):
    """A way of our own to the input gradient."""

    def serves(self, x: Tensor, shape: Size, weight: Tensor, geometry: Geometry, /) -> bool:
        """Say whether it takes an input, or a gradient of the output, of a layer whose input has this shape."""

    def input_gradient(self, grad: Tensor, weight: Tensor, shape: Size, geometry: Geometry, /) -> Tensor:
        """Return the gradient of the input, of this shape, from that of the output."""


class Path(GradientPath, Protocol):
    """A way of our own to the output as well."""

    def output(self, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, /) -> Tensor:
        """Return the output."""


# The first that serves is taken.
_PATHS: tuple[Path, ...] = (_one_tap, _depthwise, _three_taps)
_GRADIENT_PATHS: tuple[GradientPath, ...] = (*_PATHS, _depthwise_half, _depthwise_gpu)
# Of layers whose weight's gradient may be PyTorch's.
_INPUT_PATHS: tuple[GradientPath, ...] = (_three_taps, _depthwise_half)
_WEIGHT_PATHS = (_one_tap, _depthwise, _three_taps, _depthwise_gpu)

# Computes the plain layer's output from input, weight and bias.
PlainConvolution = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class FactoredConvolution(torch.autograd.Function):
    """A convolution that keeps its input in packed form."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        plain: PlainConvolution,
        geometry: Geometry,
        packed: Packed | None,
    ) -> Tensor:
        """Compute the plain convolution; keep the weight, and `packed` if the weight needs a gradient."""
        ctx.geometry = geometry
        ctx.shape, ctx.format = x.shape, memory_format(x)
        ctx.has_bias = bias is not None
        ctx.packed = None if packed is None else (type(packed), packed.meta)
        ctx.save_for_backward(weight, *(() if packed is None else packed.tensors()))
        return _output(x, weight, bias, plain, geometry)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of input, weight and bias."""
        weight, *kept = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        packed = None
        if needs_weight:
            kind, meta = ctx.packed
            packed = kind.rebuild(kept, meta)
        if isinstance(packed, DensePacked) and _both_by_library(grad, ctx.shape, weight, ctx.geometry, needs_x):
            mask = (needs_x, True, ctx.has_bias and needs_bias)
            return *plain_gradients(grad, packed.dense(), weight, ctx.geometry, mask), None, None, None
        # First, so that what it takes on the way is gone when the input's gradient takes its memory.
        grad_weight = None if packed is None else weight_gradient(packed, grad, weight, ctx.geometry)
        grad_x = input_gradient(grad, weight, ctx.shape, ctx.geometry, ctx.format) if needs_x else None
        grad_bias = grad.sum([d for d in range(grad.dim()) if d != 1]) if ctx.has_bias and needs_bias else None
        return grad_x, grad_weight, grad_bias, None, None, None


def _both_by_library(grad: Tensor, shape: Size, weight: Tensor, geometry: Geometry, needs_x: bool) -> bool:
    """Say whether the gradients of input and weight are PyTorch's, and so one call."""
    own = any(path.serves_weight(grad, shape, weight, geometry) for path in _WEIGHT_PATHS) or (
        needs_x and any(path.serves(grad, shape, weight, geometry) for path in _INPUT_PATHS)
    )
    return not own and not geometry.pads_explicitly


def _output(x: Tensor, weight: Tensor, bias: Tensor | None, plain: PlainConvolution, geometry: Geometry) -> Tensor:
    for path in _PATHS:
        if path.serves(x, x.shape, weight, geometry):
            return path.output(x, weight, bias, geometry)
    return plain(x, weight, bias)


def input_gradient(
    grad: Tensor, weight: Tensor, shape: torch.Size, geometry: Geometry, layout: torch.memory_format
) -> Tensor:
    """Return the gradient of a convolution's input.

    Args:
        grad: Gradient of the output, [b, o, m..].
        weight: The layer's weight.
        shape: Shape of the input, [b, c, h..].
        geometry: The layer's geometry.
        layout: Memory format of the input.

    Returns:
        Shape `shape`.
    """
    if layout == torch.contiguous_format:
        for path in _GRADIENT_PATHS:
            if path.serves(grad, shape, weight, geometry):
                return path.input_gradient(grad, weight, shape, geometry)
    padded = list(shape)
    for axis, (before, after) in enumerate(geometry.explicit):
        padded[2 + axis] += before + after
    # Only its shape is read. On a CPU an untouched allocation takes no memory; elsewhere one element stands for all.
    if grad.device.type == "cpu":
        stand_in = torch.empty(padded, dtype=grad.dtype, device=grad.device, memory_format=layout)
    else:
        stand_in = grad.new_empty(1).expand(padded)
    grad_x = plain_gradients(grad, stand_in, weight, geometry, (True, False, False))[0]
    assert grad_x is not None
    return geometry.pad_input_adjoint(grad_x, shape)


@lru_cache(maxsize=4096)
def geometry_of(
    kernel: tuple[int, ...],
    stride: tuple[int, ...] | int,
    padding: tuple[int, ...] | int | str,
    dilation: tuple[int, ...] | int,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Geometry:
    """Return the geometry of a convolution, from arguments as `F.conv2d` or `torch.nn.ConvNd` takes them."""
    strides, dilations = _each(stride, kernel), _each(dilation, kernel)
    if padding == "valid":
        pairs = tuple((0, 0) for _ in kernel)
    elif padding == "same":
        totals = [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
        pairs = tuple((t // 2, t - t // 2) for t in totals)
    else:
        assert not isinstance(padding, str)
        pairs = tuple((p, p) for p in _each(padding, kernel))
    return Geometry(kernel, strides, pairs, dilations, groups, padding_mode=padding_mode)


def _each(value: tuple[int, ...] | int, kernel: tuple[int, ...]) -> tuple[int, ...]:
    return (value,) * len(kernel) if isinstance(value, int) else tuple(value)


def factored_convolution(
    module: Twin, x: Tensor, weight: Tensor, bias: Tensor | None, plain: PlainConvolution, geometry: Geometry
) -> Tensor:
    """Run a twin's convolution: plainly where nothing is to be kept, else through `FactoredConvolution`.

    Args:
        module: The twin.
        x: [batch, channels, spatial...], or without the batch axis.
        weight: The layer's weight.
        bias: The layer's bias.
        plain: Computes the plain layer's output from (x, weight, bias).
        geometry: The layer's geometry.

    Returns:
        The plain layer's output, bit for bit, or to rounding where one of `_PATHS` computes it.
    """
    if not trains(module, x, weight, bias):
        return _output(x, weight, bias, plain, geometry) if _comes_again(module, x, weight) else plain(x, weight, bias)
    if x.dim() == len(geometry.kernel) + 1:
        return factored_convolution(module, x[None], weight, bias, plain, geometry)[0]
    x, weight, bias = autocast(x, weight, bias)
    packed = module._site.pack(x) if weight.requires_grad else None
    result: Tensor = FactoredConvolution.apply(x, weight, bias, plain, geometry, packed)
    return result


def _comes_again(module: Twin, x: Tensor, weight: Tensor) -> bool:
    """Say whether a call with a batch trains without a graph: the first of two in a block that is computed again."""
    without = module.training and not torch.is_grad_enabled() and not torch.is_autocast_enabled(x.device.type)
    return without and x.dim() == weight.dim()


class _Convolution(Twin, _ConvNd):
    compresses = True

    @property
    def _geometry(self) -> Geometry:
        return geometry_of(self.kernel_size, self.stride, self.padding, self.dilation, self.groups, self.padding_mode)

    def weight_gradient(self, packed: Packed, grad: Tensor) -> Tensor:
        """Return the weight's gradient for an input in packed form and a gradient [b, o, m..] of the output."""
        return weight_gradient(packed, grad, self.weight, self._geometry)

    @uncompiled
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return factored_convolution(self, input, weight, bias, super()._conv_forward, self._geometry)


@twin_of(nn.Conv1d)
class FactoredConv1d(_Convolution, nn.Conv1d):
    """`nn.Conv1d` that keeps a packed input."""


@twin_of(nn.Conv2d)
class FactoredConv2d(_Convolution, nn.Conv2d):
    """`nn.Conv2d` that keeps a packed input."""


@twin_of(nn.Conv3d)
class FactoredConv3d(_Convolution, nn.Conv3d):
    """`nn.Conv3d` that keeps a packed input."""
