"""Where a convolution's windows lie: per-axis stride, padding and dilation, and a factor seen through the windows.

Index legend, one spatial axis: n input positions, m output positions, k kernel taps, r rank.
    convolution             y[m] reads x[m * stride + k * dilation - padding]
    transposed convolution  y[m] is written by x[n] where m = n * stride + k * dilation - padding
"""

from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Geometry:
    """The static shape of one convolution call.

    Attributes:
        kernel: Taps per spatial axis.
        stride: Per spatial axis.
        padding: (before, after) per spatial axis, in positions of the input (of the output if transposed).
        dilation: Per spatial axis.
        groups: Channel groups.
        transposed: Whether this is a ConvTranspose.
        output_padding: Per spatial axis; zeros unless transposed.
        padding_mode: As in `torch.nn.ConvNd`.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    output_padding: tuple[int, ...] = ()
    padding_mode: str = "zeros"

    @cached_property
    def implicit(self) -> tuple[int, ...]:
        """Zero padding that the convolution itself applies, the same before and after."""
        if self.padding_mode != "zeros":
            return (0,) * len(self.kernel)
        return tuple(min(pair) for pair in self.padding)

    @cached_property
    def explicit(self) -> tuple[tuple[int, int], ...]:
        """(before, after) padding that is applied to the input beforehand: what `implicit` leaves."""
        return tuple((p[0] - i, p[1] - i) for p, i in zip(self.padding, self.implicit, strict=True))

    @cached_property
    def window(self) -> tuple[tuple[int, ...], ...]:
        """Kernel, stride, implicit padding and dilation, as compiled kernels take them."""
        return self.kernel, self.stride, self.implicit, self.dilation

    @cached_property
    def pads_explicitly(self) -> bool:
        """Whether `explicit` is not all zero."""
        return any(before or after for before, after in self.explicit)

    @cached_property
    def has_unit_stride(self) -> bool:
        """Whether every position of the input is the start of a window: stride 1 on every axis."""
        return prod(self.stride) == 1

    @cached_property
    def has_one_tap(self) -> bool:
        """Whether it has one tap, no padding, and all channels in one group: a product at each place, or at some."""
        unpadded = not any(before or after for before, after in self.padding)
        return not self.transposed and unpadded and prod(self.kernel) == self.groups == 1

    @cached_property
    def is_three_by_three(self) -> bool:
        """Whether it has 3 x 3 taps at stride 1, undilated, padded by at most 2, and all channels in one group."""
        plain = prod(self.stride) == prod(self.dilation) == self.groups == 1 and not self.transposed
        return plain and self.kernel == (3, 3) and not self.pads_explicitly and max(self.implicit) <= 2

    def pad_input(self, x: Tensor) -> Tensor:
        """Apply the explicit padding to `x` [batch, channels, spatial...]."""
        if not self.pads_explicitly:
            return x
        amounts = [amount for pair in reversed(self.explicit) for amount in pair]
        return F.pad(x, amounts, mode=self._pad_mode)

    def pad_input_adjoint(self, grad: Tensor, shape: torch.Size) -> Tensor:
        """Return the gradient for an input of `shape`, from that for the explicitly padded input, by PyTorch's rule."""
        if not self.pads_explicitly:
            return grad
        with torch.enable_grad():
            stand_in = grad.new_zeros(shape).requires_grad_()
            return torch.autograd.grad(self.pad_input(stand_in), stand_in, grad)[0]

    @property
    def _pad_mode(self) -> str:
        return "constant" if self.padding_mode == "zeros" else self.padding_mode

    def windows(self, factor: Tensor, axis: int, out_size: int) -> Tensor:
        """Return the rows of a spatial factor that each output position and kernel tap meet.

        Args:
            factor: Shape [n, r], for spatial axis `axis`.
            axis: 0 for the first spatial axis.
            out_size: m, the size of the layer's output on that axis.

        Returns:
            Shape [m, k, r]; zero where a tap meets padding. The weight gradient's sum over positions of this axis is a
            matrix product of the output gradient with it.
        """
        k, stride, dilation = self.kernel[axis], self.stride[axis], self.dilation[axis]
        if self.transposed:
            return _scatter_rows(factor, k, stride, self.padding[axis][0], dilation, out_size)
        before, after = self.explicit[axis]
        if before or after:
            factor = F.pad(factor.T[None], (before, after), mode=self._pad_mode)[0].T
        zeros = self.implicit[axis]
        if k == 1 and stride == 1 and not zeros:
            return factor[:, None]
        factor = F.pad(factor, (0, 0, zeros, zeros))
        row, column = factor.stride()
        overlapping = factor.as_strided((out_size, k, factor.shape[1]), (stride * row, dilation * row, column))
        return overlapping.contiguous()  # Matrix products with overlapping rows are slow.


def _scatter_rows(factor: Tensor, k: int, stride: int, padding: int, dilation: int, out_size: int) -> Tensor:
    """Return [m, k, r] with row n of `factor` at m = n * stride + tap * dilation - padding, where that is in range."""
    n, r = factor.shape
    positions = (
        torch.arange(n, device=factor.device)[:, None] * stride
        + torch.arange(k, device=factor.device)[None] * dilation
        - padding
    )
    inside = (positions >= 0) & (positions < out_size)
    source, tap = inside.nonzero(as_tuple=True)
    result = factor.new_zeros(out_size, k, r)
    result[positions[source, tap], tap] = factor[source]
    return result
