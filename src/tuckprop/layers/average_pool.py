"""Average pooling, plain and adaptive: nothing is kept. PyTorch keeps the input, and reads its shape alone."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuckprop.layers._once import first_derivative_only
from tuckprop.layers._per_axis import Sizes, per_axis
from tuckprop.layers._pointwise import worth_saving
from tuckprop.layers._twin import Twin, twin_of

_aten = torch.ops.aten
_BACKWARD = {2: _aten.avg_pool2d_backward, 3: _aten.avg_pool3d_backward}
_ADAPTIVE_BACKWARD = {2: _aten._adaptive_avg_pool2d_backward, 3: _aten._adaptive_avg_pool3d_backward}

# Gives the input's gradient from the output's and a tensor of the input's shape and strides, whose values are not read.
Backward = Callable[[Tensor, Tensor], Tensor]


class AveragePool(torch.autograd.Function):
    """A pool whose gradient needs the input's shape alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, plain: Callable[[Tensor], Tensor], backward: Backward) -> Tensor:
        """Compute the plain pool; keep nothing."""
        ctx.shape, ctx.stride, ctx.input_gradient = x.shape, x.stride(), backward
        return plain(x)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return PyTorch's gradient of the input."""
        # On a CPU an untouched allocation takes no memory.
        stand_in = torch.empty_strided(ctx.shape, ctx.stride, dtype=grad.dtype, device=grad.device)
        return ctx.input_gradient(grad, stand_in), None, None


def _pool(x: Tensor, plain: Callable[[Tensor], Tensor], backward: Backward) -> Tensor:
    if not worth_saving(x):
        return plain(x)
    result: Tensor = AveragePool.apply(x, plain, backward)
    return result


def avg_pool1d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """Compute `F.avg_pool1d`, keeping nothing."""
    kernel, steps, margin = (per_axis(v, 1) for v in (kernel_size, stride or kernel_size, padding))

    def plain(x: Tensor) -> Tensor:
        return F.avg_pool1d(x, kernel_size, stride or kernel_size, padding, ceil_mode, count_include_pad)  # type: ignore[arg-type]

    def backward(grad: Tensor, x: Tensor) -> Tensor:
        # As PyTorch does it: pooling over two axes, of which the first has one position and one tap.
        plane: Tensor = _aten.avg_pool2d_backward(
            grad.unsqueeze(-2),
            x.unsqueeze(-2),
            [1, *kernel],
            [1, *steps],
            [0, *margin],
            ceil_mode,
            count_include_pad,
            None,
        )
        return plane.squeeze(-2)

    return _pool(input, plain, backward)


def _avg_pool(
    axes: int, function: Callable[..., Tensor], input: Tensor, kernel: Sizes, stride: Sizes | None, *rest: Any
) -> Tensor:
    padding, *flags = rest
    window = [per_axis(v, axes) for v in (kernel, stride or kernel, padding)]
    return _pool(
        input,
        lambda x: function(x, *window, *flags),
        lambda grad, x: _BACKWARD[axes](grad, x, *window, *flags),
    )


def avg_pool2d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Compute `F.avg_pool2d`, keeping nothing."""
    return _avg_pool(
        2, F.avg_pool2d, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )


def avg_pool3d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Compute `F.avg_pool3d`, keeping nothing."""
    return _avg_pool(
        3, F.avg_pool3d, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )


def adaptive_avg_pool1d(input: Tensor, output_size: Any) -> Tensor:
    """Compute `F.adaptive_avg_pool1d`, keeping nothing."""

    def backward(grad: Tensor, x: Tensor) -> Tensor:
        plane: Tensor = _aten._adaptive_avg_pool2d_backward(grad.unsqueeze(-2), x.unsqueeze(-2))
        return plane.squeeze(-2)

    return _adaptive(input, output_size, F.adaptive_avg_pool1d, backward)


def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    """Compute `F.adaptive_avg_pool2d`, keeping nothing."""
    return _adaptive(input, output_size, F.adaptive_avg_pool2d, _ADAPTIVE_BACKWARD[2])


def adaptive_avg_pool3d(input: Tensor, output_size: Any) -> Tensor:
    """Compute `F.adaptive_avg_pool3d`, keeping nothing."""
    return _adaptive(input, output_size, F.adaptive_avg_pool3d, _ADAPTIVE_BACKWARD[3])


def _adaptive(input: Tensor, output_size: Any, function: Callable[..., Tensor], backward: Backward) -> Tensor:
    sizes = (output_size,) if isinstance(output_size, int) else tuple(output_size)
    if all(size == 1 for size in sizes):  # A mean, of which PyTorch keeps nothing.
        return function(input, output_size)
    return _pool(input, lambda x: function(x, output_size), backward)


@twin_of(nn.AvgPool1d)
class ShapeAvgPool1d(Twin, nn.AvgPool1d):
    """`nn.AvgPool1d` that keeps its input's shape."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute the plain pool, bit for bit."""
        return avg_pool1d(input, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad)


@twin_of(nn.AvgPool2d)
class ShapeAvgPool2d(Twin, nn.AvgPool2d):
    """`nn.AvgPool2d` that keeps its input's shape."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute the plain pool, bit for bit."""
        window = self.kernel_size, self.stride, self.padding
        return avg_pool2d(input, *window, self.ceil_mode, self.count_include_pad, self.divisor_override)


@twin_of(nn.AvgPool3d)
class ShapeAvgPool3d(Twin, nn.AvgPool3d):
    """`nn.AvgPool3d` that keeps its input's shape."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute the plain pool, bit for bit."""
        window = self.kernel_size, self.stride, self.padding
        return avg_pool3d(input, *window, self.ceil_mode, self.count_include_pad, self.divisor_override)


@twin_of(nn.AdaptiveAvgPool1d)
class ShapeAdaptiveAvgPool1d(Twin, nn.AdaptiveAvgPool1d):
    """`nn.AdaptiveAvgPool1d` that keeps its input's shape."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute the plain pool, bit for bit."""
        return adaptive_avg_pool1d(input, self.output_size)


@twin_of(nn.AdaptiveAvgPool2d)
class ShapeAdaptiveAvgPool2d(Twin, nn.AdaptiveAvgPool2d):
    """`nn.AdaptiveAvgPool2d` that keeps its input's shape."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute the plain pool, bit for bit."""
        return adaptive_avg_pool2d(input, self.output_size)


@twin_of(nn.AdaptiveAvgPool3d)
class ShapeAdaptiveAvgPool3d(Twin, nn.AdaptiveAvgPool3d):
    """`nn.AdaptiveAvgPool3d` that keeps its input's shape."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute the plain pool, bit for bit."""
        return adaptive_avg_pool3d(input, self.output_size)
