"""Sums with a packed tensor, and multiples of it, without forming it: all but one of its factors are multiplied out.

Index legend: a one axis of size n and rank k, whose factor U [n, k] is left; A' = core x_a U with a core that has k in
place of n; G a gradient of the shape of A'. Statistics belong to some axes (the channels of a batch norm, samples and
channels of a group norm), the others are summed over; a is one of the others. So
    sum G A' = sum (G x_a U^T) core
reads G once, and s G + t A' + u, with s, t, u over the axes of the statistics, is written at one go: t and u enter
the core.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tuckprop.codecs import Packed
from tuckprop.layers._pointwise import is_dense
from tuckprop.linalg.modes import expand, mode_product

# A core that is larger than this share of the tensor is not worth a route of its own.
_LARGEST_CORE = 0.5


def memory_order(x: Tensor) -> tuple[int, ...]:
    """Return the axes of `x` from the slowest in memory to the fastest; a dense tensor so permuted is contiguous."""
    strides = x.stride()
    return tuple(sorted(range(x.dim()), key=lambda axis: (-strides[axis], axis)))


def rebuild(packed: Packed, order: Sequence[int]) -> Tensor:
    """Return the activation, with its axes in this order of memory: a kernel that reads it beside a gradient asks so.

    Args:
        packed: A', any shape.
        order: Axes from the slowest in memory to the fastest.

    Returns:
        A', of the shape of A'.
    """
    core, factors = packed.partial(range(len(order)))
    core = core.permute(*order).contiguous()
    # The smallest growth first keeps the products in between small.
    for axis in sorted(factors, key=lambda a: factors[a].shape[0] / factors[a].shape[1]):
        core = expand(core, factors[axis], order.index(axis))
    return core.permute([order.index(axis) for axis in range(len(order))])


class OneFactor(NamedTuple):
    """A packed tensor as a core and one factor.

    Attributes:
        core: Contiguous; its axes are those of the tensor in `order`.
        factor: U [n, k].
        mode: The axis of `core` that U expands.
        order: Axes of the tensor, in the order of a gradient's memory.
        statistics: Axes of the tensor that are not summed over.
    """

    core: Tensor
    factor: Tensor
    mode: int
    order: tuple[int, ...]
    statistics: tuple[int, ...]

    @classmethod
    def of(cls, packed: Packed, grad: Tensor, statistics: tuple[int, ...]) -> "OneFactor | None":
        """Return `packed` in this form, or None where none is smaller than half of the tensor.

        Args:
            packed: A'.
            grad: G, dense in memory, of the shape of A'.
            statistics: Axes that are not summed over.
        """
        core, factors = packed.partial(range(grad.dim()))
        growth = {a: (f.shape[1] + 1) / f.shape[0] for a, f in factors.items() if a not in statistics}
        if not growth or min(growth.values()) > _LARGEST_CORE:
            return None
        order = memory_order(grad)
        # Of two axes alike, products are faster along the one that lies closer in memory.
        axis = min(growth, key=lambda a: (growth[a], -order.index(a)))
        core, _ = packed.partial((axis,))
        return cls(core.permute(order).contiguous(), factors[axis], order.index(axis), order, statistics)

    def sums(self, grad: Tensor) -> Tensor:
        """Return `sum G A'` over all axes but those of the statistics, in at least float32; shape of those axes."""
        projected = mode_product(grad.permute(self.order), self.factor, self.mode)
        exact = torch.promote_types(projected.dtype, torch.float32)
        summed = [mode for mode, axis in enumerate(self.order) if axis not in self.statistics]
        return (projected.to(exact) * self.core.to(exact)).sum(summed)

    def combine(self, grad: Tensor, scale: Tensor, share: Tensor, shift: Tensor) -> Tensor:
        """Return `scale G + share A' + shift`, in the memory order of G.

        Args:
            grad: G.
            scale: s, broadcast over the axes of the statistics, which it has in ascending order.
            share: t, likewise.
            shift: u, likewise.

        Returns:
            A new tensor of the shape and dtype of G; no other of its size is held.
        """
        weighted = self.core * self._spread(share)
        constant = self._spread(shift).expand_as(weighted.narrow(self.mode, 0, 1))
        ones = self.factor.new_ones(len(self.factor), 1)
        # The constant rides along as one more column of the factor: no pass of its own.
        result = expand(torch.cat([weighted, constant], self.mode), torch.cat([self.factor, ones], 1), self.mode)
        result.addcmul_(grad.permute(self.order), self._spread(scale))
        return result.permute([self.order.index(axis) for axis in range(grad.dim())])

    def _spread(self, values: Tensor) -> Tensor:
        """Return values over the axes of the statistics so that they broadcast with the core."""
        shape = [1] * len(self.order)
        for axis, size in zip(self.statistics, values.shape, strict=True):
            shape[axis] = size
        return values.to(self.core.dtype).view(shape).permute(self.order)


def dense_gradient(grad: Tensor) -> Tensor:
    """Return `grad` itself, or a contiguous copy of one that is expanded or has gaps."""
    return grad if is_dense(grad) else grad.contiguous()


__all__ = ["OneFactor", "dense_gradient", "memory_order", "rebuild"]
