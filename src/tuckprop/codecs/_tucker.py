"""A core and orthonormal factors: the form that HOSVD, SVD and tracked subspaces share."""

from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from math import prod

import torch
from torch import Size, Tensor

from tuckprop.codecs._base import Outline, Packed
from tuckprop.linalg.basis import NotFactorableError
from tuckprop.linalg.chained import expand_each
from tuckprop.linalg.layout import inverse, memory_order, moves_nothing

# Shape, factored axes (ascending), and ranks as the paper counts them.
_Meta = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]

# Core, factors by axis, and ranks as the paper counts them.
Parts = tuple[Tensor, dict[int, Tensor], tuple[int, ...]]


class TuckerPacked(Packed):
    """`x = core x_a U_a` over the factored axes a; an axis without a factor is whole in the core.

    Attributes:
        core: Shape of `x` with rank k_a in place of the size on every factored axis.
        factors: Axis to factor U_a, shape [n_a, k_a], orthonormal columns.
        ranks: One per axis, as chosen by the threshold, for the paper's count; an axis may have a rank and yet be
            whole in the core. None where the paper gives that axis no factor.
    """

    def __init__(self, core: Tensor, factors: dict[int, Tensor], ranks: tuple[int, ...]) -> None:
        self.core = core
        self.factors = factors
        self.ranks = ranks

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the core and the factors, by ascending axis."""
        return (self.core, *(self.factors[axis] for axis in sorted(self.factors)))

    @property
    def meta(self) -> _Meta:
        """The shape, the factored axes and the counted ranks."""
        return tuple(self.shape), tuple(sorted(self.factors)), self.ranks

    @classmethod
    def rebuild(cls, tensors: Sequence[Tensor], meta: _Meta) -> "TuckerPacked":
        """Make the object again."""
        core, *factors = tensors
        return cls(core, dict(zip(meta[1], factors, strict=True)), meta[2])

    @property
    def shape(self) -> Size:
        """Shape of the activation."""
        sizes = list(self.core.shape)
        for axis, factor in self.factors.items():
            sizes[axis] = factor.shape[0]
        return Size(sizes)

    def dense(self) -> Tensor:
        """Return the core times all factors; shape `self.shape`."""
        return self.partial(())[0]

    def partial(self, keep: Collection[int]) -> tuple[Tensor, dict[int, Tensor]]:
        """Return the core times the factors outside `keep`, and the factors in `keep`."""
        core = expand_each(self.core, {axis: factor for axis, factor in self.factors.items() if axis not in keep})
        return core, {axis: factor for axis, factor in self.factors.items() if axis in keep}

    def outline(self) -> Outline:
        """Return the shapes of core and factors."""
        return Outline(self.core.shape, tuple((axis, *factor.shape) for axis, factor in self.factors.items()))

    def paper_count(self) -> int:
        """Return `prod k_j + sum n_j k_j` over the axes that the paper factors (Nguyen et al., NeurIPS 2024)."""
        return counted(self.shape, self.ranks)


@lru_cache(maxsize=4096)
def counted(shape: Sequence[int], ranks: Sequence[int]) -> int:
    """Return the paper's count of a core and factors; a rank of 0 stands for no factor."""
    factored = [(n, k) for n, k in zip(shape, ranks, strict=True) if k > 0]
    whole = prod(n for n, k in zip(shape, ranks, strict=True) if k == 0)
    return whole * prod(k for _, k in factored) + sum(n * k for n, k in factored)


def in_memory_order(x: Tensor, dtype: torch.dtype, factor: Callable[[Tensor, tuple[int, ...]], Parts]) -> TuckerPacked:
    """Run a factorisation on a contiguous view of `x`, so that channels_last costs no copy.

    Args:
        x: The activation, any strides.
        dtype: Work in this dtype; the result is kept in the dtype of `x`.
        factor: Takes the permuted tensor and, per axis of it, the axis of `x` it stands for; returns core, factors and
            ranks for the permuted axes.

    Returns:
        The packed activation, with the axes of `x`.

    Raises:
        NotFactorableError: The core does not fit the range of the dtype of `x`; its entries reach the norm of `x`.
    """
    order = memory_order(x)
    return in_order(factor(x.permute(order).contiguous().to(dtype), order), order, x.dtype)


def in_order(parts: Parts, order: Sequence[int], dtype: torch.dtype) -> TuckerPacked:
    """Return the packed form of a tensor from that of the tensor with its axes in this order.

    Args:
        parts: Core, factors and ranks of the permuted tensor.
        order: Its axes.
        dtype: To keep them in.

    Returns:
        The packed activation.

    Raises:
        NotFactorableError: The core does not fit the range of `dtype`.
    """
    core, factors, ranks = parts
    limit = torch.finfo(dtype).max
    # No entry of the core is larger than its norm, whose square was finite: bfloat16 needs no look, float16 does.
    if limit < torch.finfo(core.dtype).max ** 0.5 and not bool((core.abs() <= limit).all()):
        raise NotFactorableError(f"its core is out of the range of {dtype}")
    return put_back((core.to(dtype), {axis: matrix.to(dtype) for axis, matrix in factors.items()}, ranks), order)


def put_back(parts: Parts, order: Sequence[int]) -> TuckerPacked:
    """Return the packed form of a tensor from that of the tensor with its axes in this order, in the dtypes it has."""
    core, factors, ranks = parts
    if moves_nothing(order):
        return TuckerPacked(core, factors, ranks)
    back = inverse(tuple(order))
    kept = {order[axis]: matrix for axis, matrix in factors.items()}
    return TuckerPacked(core.permute(back), kept, tuple(ranks[axis] for axis in back))
