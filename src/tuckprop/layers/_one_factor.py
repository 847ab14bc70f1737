"""Sums with a packed tensor, and multiples of it, without forming it: all but one of its factors are multiplied out.

Index legend: a one axis of size n and rank k, whose factor U [n, k] is left; A' = core x_a U with a core that has k in
place of n; G a gradient of the shape of A'. Statistics belong to some axes (the channels of a batch norm, samples and
channels of a group norm), the others are summed over. Where a is summed over,
    sum G A' = sum (G x_a U^T) core
and where it is an axis of the statistics, with P = sum G core^T [.., n, k],
    sum G A' = sum_k P U
Either reads G once, and a column of ones beside U, or beside the core, has sum G come out of the same product. Then
s G + t A' + u, with s, t, u over the axes of the statistics, is written at one go: t and u enter a factor of it.
"""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from tuckprop.layers._operands import Operands
from tuckprop.linalg.layout import inverse, is_dense, memory_order
from tuckprop.linalg.modes import add_expanded, mode_product

# A core that is larger than this share of the tensor is not worth a route of its own.
_LARGEST_CORE = 0.5


class OneFactor(Protocol):
    """A packed tensor A' as a core and one factor, beside a gradient G."""

    def sums(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Return `sum G A'` and `sum G`, each of the shape of the axes of the statistics."""

    def combine(self, grad: Tensor, owned: bool, scale: Tensor, share: Tensor, shift: Tensor) -> Tensor:
        """Return `scale G + share A' + shift`, in the memory order of G.

        Args:
            grad: G.
            owned: Whether the result may take the memory of G.
            scale: s, of the shape of the axes of the statistics.
            share: t, likewise.
            shift: u, likewise.

        Returns:
            Of the shape and dtype of G; no other tensor of its size is made.
        """


def one_factor(operands: Operands, grad: Tensor, statistics: tuple[int, ...]) -> OneFactor | None:
    """Return A' as a core and one factor, or None where none is worth it.

    Args:
        operands: A'.
        grad: G, dense in memory, of the shape of A'.
        statistics: Axes that are not summed over, ascending.
    """
    if grad.dtype.itemsize < 4:
        return None  # Sums would be rounded to half precision.
    factors, order = operands.factors, memory_order(grad)
    growth = {
        axis: (factor.shape[1] + 1) / factor.shape[0]
        for axis, factor in factors.items()
        if axis not in statistics or _serves(order, axis, statistics, grad.shape, factor.shape[1])
    }
    if not growth or min(growth.values()) > _LARGEST_CORE:
        return None
    # Of two axes alike, products are faster along the one that lies closer in memory.
    axis = min(growth, key=lambda a: (growth[a], -order.index(a)))
    kind = StatisticsFactor if axis in statistics else SummedFactor
    return kind(operands.multiplied(order, but=axis), factors[axis], order.index(axis), order, statistics)


def _serves(order: tuple[int, ...], axis: int, statistics: tuple[int, ...], shape: Sequence[int], rank: int) -> bool:
    """Say whether an axis of the statistics can be it: the others come first in memory, and products stay small."""
    others = tuple(a for a in statistics if a != axis)
    after = prod(shape[a] for a in order[order.index(axis) + 1 :])
    return order[: len(others)] == others and (after == 1 or rank < after)


class SummedFactor(NamedTuple):
    """A core and a factor of an axis that is summed over; a OneFactor.

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

    def sums(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Return `sum G A'` and `sum G`."""
        projected = mode_product(grad.permute(self.order), self._with(torch.ones_like(self.factor[:, :1])), self.mode)
        rank = self.factor.shape[1]
        summed = [mode for mode, axis in enumerate(self.order) if axis not in self.statistics]
        products = (projected.narrow(self.mode, 0, rank) * self.core).sum(summed)
        return products, projected.narrow(self.mode, rank, 1).sum(summed)

    def combine(self, grad: Tensor, owned: bool, scale: Tensor, share: Tensor, shift: Tensor) -> Tensor:
        """Return `scale G + share A' + shift`."""
        weighted = self.core * _spread(share, self.statistics, self.order)
        constant = _spread(shift, self.statistics, self.order).expand_as(weighted.narrow(self.mode, 0, 1))
        factor = self._with(torch.ones_like(self.factor[:, :1]))
        result = _scaled(grad.permute(self.order), _spread(scale, self.statistics, self.order), owned)
        add_expanded(result, torch.cat([weighted, constant], self.mode), factor, self.mode)
        return result.permute(inverse(self.order))

    def _with(self, column: Tensor) -> Tensor:
        return torch.cat([self.factor, column], 1)


class StatisticsFactor:
    """A core and a factor of an axis of the statistics; a OneFactor.

    Args:
        core: Contiguous; its axes are those of the tensor in `order`.
        factor: U [n, k].
        mode: The axis of `core` that U expands.
        order: Axes of the tensor, in the order of a gradient's memory; other axes of the statistics come first.
        statistics: Axes of the tensor that are not summed over.
    """

    def __init__(
        self, core: Tensor, factor: Tensor, mode: int, order: tuple[int, ...], statistics: tuple[int, ...]
    ) -> None:
        self.factor = factor
        self.order = order
        self.statistics = statistics
        shape = core.shape
        leading = len(statistics) - 1
        # [samples, before, n or k + 1, after], samples being the other axes of the statistics.
        self._sizes = (prod(shape[:leading]), prod(shape[leading:mode]), prod(shape[mode + 1 :]))
        ones = torch.ones_like(core.narrow(mode, 0, 1))
        self._core = self._stack(torch.cat([core, ones], mode))

    def sums(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Return `sum G A'` and `sum G`."""
        samples, before, after = self._sizes
        stack = self._stack(grad.permute(self.order))
        if after == 1:
            products = stack.transpose(1, 2) @ self._core
        else:
            products = (stack @ self._core.transpose(1, 2)).unflatten(0, (samples, before)).sum(1)
        shape = [grad.shape[axis] for axis in self.statistics]
        return (products[..., :-1] * self.factor).sum(-1).view(shape), products[..., -1].reshape(shape)

    def combine(self, grad: Tensor, owned: bool, scale: Tensor, share: Tensor, shift: Tensor) -> Tensor:
        """Return `scale G + share A' + shift`."""
        samples, before, after = self._sizes
        size = len(self.factor)
        share, shift = share.to(self.factor).view(samples, size, 1), shift.to(self.factor).view(samples, size, 1)
        factor = torch.cat([share * self.factor, shift], 2)
        result = _scaled(grad.permute(self.order), _spread(scale.to(grad), self.statistics, self.order), owned)
        if after == 1:
            self._stack(result).baddbmm_(self._core, factor.transpose(1, 2))
        else:
            # Without a copy where there is one sample, or nothing before.
            self._stack(result).baddbmm_(factor.unsqueeze(1).expand(-1, before, -1, -1).flatten(0, 1), self._core)
        return result.permute(inverse(self.order))

    def _stack(self, x: Tensor) -> Tensor:
        """Return [samples, before, n] where nothing comes after the axis, else [samples before, n, after]."""
        samples, before, after = self._sizes
        return x.reshape(samples, before, -1) if after == 1 else x.reshape(samples * before, -1, after)


def _scaled(grad: Tensor, scale: Tensor, owned: bool) -> Tensor:
    """Return `scale G`, contiguous as G is."""
    return grad.mul_(scale) if owned else grad * scale


def _spread(values: Tensor, statistics: tuple[int, ...], order: tuple[int, ...]) -> Tensor:
    """Return values over the axes of the statistics so that they broadcast with a tensor in `order`."""
    shape = [1] * len(order)
    for axis, size in zip(statistics, values.shape, strict=True):
        shape[axis] = size
    return values.view(shape).permute(order)


def dense_gradient(grad: Tensor) -> Tensor:
    """Return `grad` itself, or a contiguous copy of one that is expanded or has gaps."""
    return grad if is_dense(grad) else grad.contiguous()
