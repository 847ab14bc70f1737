"""Adaptive max pooling: the indices of the maxima in 4 bytes an output, and not the input, which PyTorch keeps too."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuckprop.layers._once import first_derivative_only
from tuckprop.layers._pointwise import worth_saving
from tuckprop.layers._twin import Twin, twin_of

_aten = torch.ops.aten
_PLAIN: dict[int, Callable[..., Any]] = {
    1: F.adaptive_max_pool1d,
    2: F.adaptive_max_pool2d,
    3: F.adaptive_max_pool3d,
}
_FORWARD = {2: _aten.adaptive_max_pool2d, 3: _aten.adaptive_max_pool3d}
_BACKWARD = {2: _aten.adaptive_max_pool2d_backward, 3: _aten.adaptive_max_pool3d_backward}


class IndexMaxPool(torch.autograd.Function):
    """Adaptive max pooling over two or three axes that keeps the indices alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, outputs: list[int]) -> Tensor:
        """Pool [b, c, h..] or [c, h..] to `outputs`; keep the indices, which are flat within a plane."""
        y, indices = _FORWARD[len(outputs)](x, outputs)
        ctx.shape, ctx.stride, ctx.axes = x.shape, x.stride(), len(outputs)
        ctx.save_for_backward(indices.to(torch.int32))
        pooled: Tensor = y
        return pooled

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the exact gradient of the input."""
        (indices,) = ctx.saved_tensors
        # Its shape alone is read, and on a CPU an untouched allocation takes no memory.
        stand_in = torch.empty_strided(ctx.shape, ctx.stride, dtype=grad.dtype, device=grad.device)
        return _BACKWARD[ctx.axes](grad, stand_in, indices.to(torch.int64)), None


def _pool(axes: int, x: Tensor, output_size: Any, return_indices: bool) -> Any:
    sizes = (output_size,) * axes if isinstance(output_size, int) else tuple(output_size)
    usable = x.dim() in {axes + 1, axes + 2} and len(sizes) == axes and worth_saving(x)
    if return_indices or not usable or x.numel() >= 1 << 31:
        return _PLAIN[axes](x, output_size, return_indices)
    outputs = [n if size is None else size for n, size in zip(x.shape[-axes:], sizes, strict=True)]
    if axes == 1:  # As PyTorch does it: over two axes, of which the first has one position.
        return IndexMaxPool.apply(x.unsqueeze(-2), [1, *outputs]).squeeze(-2)
    return IndexMaxPool.apply(x, outputs)


def adaptive_max_pool1d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """Compute `F.adaptive_max_pool1d`, keeping 4 bytes an output; with `return_indices` it is the plain op."""
    return _pool(1, input, output_size, return_indices)


def adaptive_max_pool2d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """Compute `F.adaptive_max_pool2d`, keeping 4 bytes an output; with `return_indices` it is the plain op."""
    return _pool(2, input, output_size, return_indices)


def adaptive_max_pool3d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """Compute `F.adaptive_max_pool3d`, keeping 4 bytes an output; with `return_indices` it is the plain op."""
    return _pool(3, input, output_size, return_indices)


@twin_of(nn.AdaptiveMaxPool1d)
class IndexAdaptiveMaxPool1d(Twin, nn.AdaptiveMaxPool1d):
    """`nn.AdaptiveMaxPool1d` that keeps the indices alone."""

    def forward(self, input: Tensor) -> Any:
        """Compute the plain pool, bit for bit."""
        return adaptive_max_pool1d(input, self.output_size, self.return_indices)


@twin_of(nn.AdaptiveMaxPool2d)
class IndexAdaptiveMaxPool2d(Twin, nn.AdaptiveMaxPool2d):
    """`nn.AdaptiveMaxPool2d` that keeps the indices alone."""

    def forward(self, input: Tensor) -> Any:
        """Compute the plain pool, bit for bit."""
        return adaptive_max_pool2d(input, self.output_size, self.return_indices)


@twin_of(nn.AdaptiveMaxPool3d)
class IndexAdaptiveMaxPool3d(Twin, nn.AdaptiveMaxPool3d):
    """`nn.AdaptiveMaxPool3d` that keeps the indices alone."""

    def forward(self, input: Tensor) -> Any:
        """Compute the plain pool, bit for bit."""
        return adaptive_max_pool3d(input, self.output_size, self.return_indices)
